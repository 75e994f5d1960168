package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// caddy is a server that is a Caddy, with a store and a site for each thing to
// be measured.
type caddy struct {
	*server
	config   string // its Caddyfile
	store    string // the directory that bench-store has filled
	database string // the arguments of store postgres, where that has the records; empty: it does not
	admin    string
	option   string // one more setting of the app, if any
	sites    map[string]site
}

// site is what the Caddyfile says of one site, and where that listens.
type site struct{ address, directives string }

// caddy adds a Caddy that has the store open, and sites by their names.
func (b *bench) caddy(name string, spec storeSpec, sites map[string]string) *caddy {
	c := &caddy{store: b.dir(spec), admin: freeAddress(), sites: make(map[string]site)}
	for name, directives := range sites {
		c.sites[name] = site{freeAddress(), directives}
	}
	c.config = filepath.Join(b.temp, strings.ReplaceAll(name, " ", "-")+".caddyfile")
	c.server = b.add(&server{
		name:    name,
		command: []string{b.program("caddy"), "run", "--config", c.config, "--adapter", "caddyfile"},
		env:     []string{"XDG_CONFIG_HOME=" + b.temp, "XDG_DATA_HOME=" + filepath.Join(b.temp, "data")},
		listens: []string{c.admin},
		vars:    c.admin,
		core:    b.serverCore,
	})
	for _, s := range c.sites {
		c.listens = append(c.listens, s.address)
	}
	c.prepare = func(ctx context.Context) error {
		if err := b.makeStore(ctx, spec); err != nil {
			return err
		}
		return os.WriteFile(c.config, []byte(c.caddyfile()), 0o600)
	}
	return c
}

// onCopy has the server work on a copy of its store, in the given directory:
// it is going to change it.
func (b *bench) onCopy(c *caddy, dir string) *caddy {
	original, prepare := c.store, c.prepare
	c.store = filepath.Join(dir, filepath.Base(original)+"-"+c.name)
	b.copies = append(b.copies, c.store)
	c.prepare = func(ctx context.Context) error {
		if err := prepare(ctx); err != nil {
			return err
		}
		_ = os.RemoveAll(c.store)
		return os.CopyFS(c.store, os.DirFS(original))
	}
	return c
}

func (c *caddy) file(name string) string { return filepath.Join(c.store, name) }

func (c *caddy) caddyfile() string {
	var text strings.Builder
	engine := "badger " + c.file("badger")
	if c.database != "" {
		engine = "postgres " + c.database + "\n\t\tmaster_key {file." + c.file("caddy/keys/client_credentials_master.key") + "}"
	}
	fmt.Fprintf(&text, `{
	admin %s
	default_bind 127.0.0.1
	auto_https off
	persist_config off
	storage file_system %s
	client_credentials {
		issuer http://localhost
		store %s
		signing_key %s
		token_lifetime %s
		%s
	}
}
`, c.admin, c.file("caddy"), engine, c.file("signing_key.pem"), lifetime, c.option)
	for _, s := range c.sites {
		directives := strings.ReplaceAll(s.directives, "STORE", c.store)
		fmt.Fprintf(&text, "\nhttp://:%s {\n%s\n}\n", port(s.address), directives)
	}
	return text.String()
}

// nginxServer adds an nginx with a bare proxy and one that asks the service
// first.
func (b *bench) nginxServer(service string) (s *server, bare, asking string) {
	bare, asking = freeAddress(), freeAddress()
	user := ""
	if os.Getuid() == 0 {
		user = "user root;" // who can read the directory
	}
	config := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log stderr error; %[2]s
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	keepalive_requests 1000000000;
	upstream service { server %[3]s; keepalive 64; keepalive_requests 1000000000; }
	proxy_http_version 1.1;
	proxy_set_header Connection "";
	server { listen %[4]s; location / { proxy_pass http://service; } }
	server {
		listen %[5]s;
		location / { auth_request /auth; proxy_pass http://service; }
		location = /auth {
			internal;
			proxy_pass http://service;
			proxy_pass_request_body off;
			proxy_set_header Content-Length "";
		}
	}
}
`, b.temp, user, service, bare, asking)
	path := filepath.Join(b.temp, "nginx.conf")
	return b.add(&server{
		name:    "nginx",
		command: []string{b.nginx, "-e", "stderr", "-p", b.temp, "-c", path},
		listens: []string{bare, asking},
		core:    b.serverCore,
		prepare: func(context.Context) error { return os.WriteFile(path, []byte(config), 0o600) },
	}), bare, asking
}

func replaceService(directive, service string) string {
	return strings.ReplaceAll(directive, "SERVICE", service)
}

func port(address string) string {
	_, port, _ := strings.Cut(address, ":")
	return port
}
