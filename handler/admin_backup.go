package handler

import (
	"net/http"
	"time"

	"go.uber.org/zap"
)

// AdminBackupPath is where the admin endpoint makes backups.
const AdminBackupPath = AdminPath + "/backup"

// backupStall is how long a client may take for a part of a backup: the store
// keeps what it has deleted, and does not close, while it is being read.
const backupStall = 3 * time.Second

func (a AdminAPI) serveBackup(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodGet {
		return adminMethodNotAllowed(w, http.MethodGet)
	}
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Cache-Control", "no-store")
	stream := &backupStream{w: w, control: http.NewResponseController(w)}
	err = iss.WriteBackup(r.Context(), stream)
	log := a.log(r).With(zap.Int64("bytes", stream.written))
	if err == nil {
		log.Info("backup made")
		return nil
	}
	log.Error("backup failed", zap.Error(err))
	if stream.written == 0 {
		return adminError(err)
	}
	panic(http.ErrAbortHandler) // so that the client sees that there should be more
}

// backupStream passes on a backup for as long as the client takes it.
type backupStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	written int64
}

func (s *backupStream) Write(p []byte) (int, error) {
	if err := s.control.SetWriteDeadline(time.Now().Add(backupStall)); err != nil {
		return 0, err
	}
	n, err := s.w.Write(p)
	s.written += int64(n)
	return n, err
}
