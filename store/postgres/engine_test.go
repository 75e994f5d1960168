package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
)

// No error may have it, nor a part of it that is as long as this.
const secret = "s3cr3t-pa55"

func wantSilence(t *testing.T, where string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", where)
		return
	}
	for _, part := range []string{"s3cr3t", "pa55"} {
		if strings.Contains(err.Error(), part) {
			t.Errorf("%s: the error has a part of the password: %v", where, err)
		}
	}
}

func TestNoErrorHasThePassword(t *testing.T) {
	t.Setenv("TEST_PASSWORD", secret)
	for _, connection := range []string{
		"postgres://u:" + secret + "@host:port/db",
		"postgres://u:s3cr3t@pa55@host:99999/db",
		"postgres://u:s3cr3t/pa55@host/db",
		"postgres://u:s3cr3t%pa55@host/db",
		"postgres://u:" + secret + "@[host/db",
		"postgres://u:" + secret + "@host/db?sslmode=never",
		"postgres://u@host/db?password=" + secret + "&pool_max_conns=none",
		"host=h password=s3cr3t pa55 user=u",
		"host=h password='" + secret,
		"host=h password=" + secret + " port=none",
		"host=h password=" + secret + " sslrootcert=/does/not/exist",
		"host=h password={s3cr3t}pa55",
		"host=h port=none password={env.TEST_PASSWORD}",
		"hallo " + secret,
	} {
		err := (&Postgres{Connection: connection}).Provision(caddy.Context{})
		wantSilence(t, "Provision of "+connection, err)
		d := caddyfile.NewTestDispenser("postgres `" + connection + "` more")
		wantSilence(t, "UnmarshalCaddyfile of "+connection, new(Postgres).UnmarshalCaddyfile(d))
	}
	d := caddyfile.NewTestDispenser("postgres host=h user=u password=" + secret)
	wantSilence(t, "without quotes", new(Postgres).UnmarshalCaddyfile(d))
}

func TestNoErrorOfTheDatabaseHasThePassword(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	for where, url := range map[string]string{
		"wrong password": strings.Replace(server.URL(database), server.Password, secret, 1),
		"no database":    server.URL("nowhere"),
	} {
		_, err := provisioned(t, url).Open(t.Context())
		wantSilence(t, where, err)
		if err != nil && strings.Contains(err.Error(), server.Password) {
			t.Errorf("%s: the error has the password: %v", where, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	engine := &Postgres{Connection: fmt.Sprintf("host=127.0.0.1 port=%d user=u password=%s dbname=d", freeport.For(t), secret)}
	if err := engine.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	_, err := engine.Open(ctx)
	wantSilence(t, "nobody listens", err)
}

func TestTheIdentityIsThatOfTheDatabase(t *testing.T) {
	t.Setenv("TEST_URL", "postgres://app:"+secret+"@DB.example.com./cc")
	identity := func(connection string) string {
		t.Helper()
		engine := provisioned(t, connection)
		if strings.Contains(engine.Identity(), secret) {
			t.Errorf("the identity has the password: %s", engine.Identity())
		}
		return engine.Identity()
	}
	want := "postgres:db.example.com:5432/cc"
	for _, same := range []string{
		"{env.TEST_URL}",
		"postgres://app:other@db.example.com:5432/cc",
		"postgresql://somebody@db.example.com/cc?sslmode=require",
		"host=db.example.com dbname=cc user=app password='a b'",
		"host=db.example.com user=cc",
	} {
		if got := identity(same); got != want {
			t.Errorf("the identity of %s is %s, want %s", same, got, want)
		}
	}
	for _, other := range []string{
		"postgres://app@db.example.com:5433/cc",
		"postgres://app@other.example.com/cc",
		"postgres://app@db.example.com/other",
		"postgres://app@db.example.com/cc?search_path=other",
		"postgres://app@db.example.com/cc?options=-csearch_path%3Dother",
	} {
		if got := identity(other); got == want {
			t.Errorf("the identity of %s is %s, too", other, got)
		}
	}
	if a, b := identity("postgres://u@a,b/cc"), identity("postgres://u@b,a/cc"); a != b {
		t.Errorf("the same hosts in another order are %s and %s", a, b)
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for _, wrong := range []Postgres{
		{},
		{Connection: "postgres://h/d", Lease: caddy.Duration(999 * time.Millisecond)},
		{Connection: "postgres://h/d", Lease: caddy.Duration(61 * time.Second)},
		{Connection: "postgres://h/d", OnStale: "perhaps"},
		{Connection: "postgres://h/d", RevokeWait: "some"},
		{Connection: "{env.THERE_IS_NONE}"},
	} {
		if err := wrong.Provision(caddy.Context{}); err == nil {
			t.Errorf("%+v was taken", wrong)
		}
	}
	engine := provisioned(t, "postgres://h/d", func(p *Postgres) { p.Lease = 0 })
	if time.Duration(engine.Lease) != DefaultLease || engine.OnStale != OnStaleRefuse || engine.RevokeWait != RevokeWaitAll {
		t.Errorf("the defaults are %v, %s, %s", engine.Lease, engine.OnStale, engine.RevokeWait)
	}
}

// What a lease can notice, no operation may hang on for longer.
func TestConnectingHasALimit(t *testing.T) {
	for connection, want := range map[string]time.Duration{
		"postgres://h/d":                   time.Second,
		"postgres://h/d?connect_timeout=9": time.Second,
		"postgres://h/d?connect_timeout=1": time.Second,
	} {
		engine := provisioned(t, connection, func(p *Postgres) { p.Lease = caddy.Duration(2 * time.Second) })
		if got := engine.config.ConnConfig.ConnectTimeout; got != want {
			t.Errorf("connecting to %s may take %s, want %s", connection, got, want)
		}
	}
}

func TestTheMetricsTellOfTheNode(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(metrics)
	gather := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]float64)
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				values[strings.TrimPrefix(family.GetName(), "caddy_client_credentials_store_")] += metric.GetGauge().GetValue()
			}
		}
		return values
	}
	if values := gather(); len(values) != 0 {
		t.Errorf("without a store the metrics are %v", values)
	}
	db := open(t, newURL(t))
	if values := gather(); values["stale"] != 1 {
		t.Errorf("before it follows, the metrics are %v", values)
	}
	if err := db.Follow(t.Context(), new(follower)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the metrics are those of a node that may serve", func() bool {
		values := gather()
		return values["stale"] == 0 && values["lag_seconds"] > 0 && values["lag_seconds"] < 1 && values["connections"] > 1
	})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if values := gather(); len(values) != 0 {
		t.Errorf("after Close the metrics are %v", values)
	}
}
