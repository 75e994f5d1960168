package issuer

import (
	"context"
	"errors"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// AcceptLoss makes a store that has lost what it had acknowledged open again,
// with what is left of it, and returns what is missing, as far as that can be
// told. As revocations may be among it, all tokens are ended, and the keys that
// have signed them dropped; the indexes are made anew, as of a credential and its
// entries either may be lost.
func (a *App) AcceptLoss(ctx context.Context) (lost []string, err error) {
	mender, ok := a.engine.(store.Mender)
	if !ok {
		return nil, errors.New("this kind of store can't tell what it has lost")
	}
	return mender.AcceptLoss(ctx, func(st store.Store) error { return beginWithWhatIsLeft(ctx, st) })
}

func beginWithWhatIsLeft(ctx context.Context, st store.Store) error {
	if _, err := beginAnew(ctx, st, nil); err != nil {
		return err
	}
	if err := dropIndexes(ctx, st, listedPrefix, endedPrefix); err != nil {
		return err
	}
	return indexAll(ctx, st)
}
