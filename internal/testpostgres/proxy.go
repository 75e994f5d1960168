package testpostgres

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
)

// Proxy stands between a client and a server, and can cut them off from one
// another as a broken network does: nothing arrives, and nothing is closed.
type Proxy struct {
	server *Server
	port   int

	mu    sync.Mutex
	heals chan struct{} // closed while the network is whole
	conns []net.Conn
	ended bool
}

// NewProxy returns a proxy before the server, which ends with its test.
func NewProxy(t testing.TB, server *Server) *Proxy {
	t.Helper()
	port := freeport.For(t)
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{server: server, port: port, heals: make(chan struct{})}
	close(p.heals)
	t.Cleanup(func() {
		listener.Close()
		p.Heal()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = true
		for _, conn := range p.conns {
			conn.Close()
		}
	})
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client)
		}
	}()
	return p
}

// URL returns the connection string of a database through the proxy.
func (p *Proxy) URL(database string) string { return p.server.URLThrough(p.port, database) }

// Cut has nothing arrive any more.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heals = make(chan struct{})
}

// Heal has what was sent meanwhile arrive, and all that follows.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.heals:
	default:
		close(p.heals)
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	p.waitForNetwork()
	server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", p.server.Port))
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	ended := p.ended
	p.conns = append(p.conns, client, server)
	p.mu.Unlock()
	if ended {
		return
	}
	gone := make(chan struct{}, 2)
	for from, to := range map[net.Conn]net.Conn{client: server, server: client} {
		go func() {
			p.forward(to, from)
			gone <- struct{}{}
		}()
	}
	<-gone
}

func (p *Proxy) forward(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		p.waitForNetwork()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) waitForNetwork() {
	p.mu.Lock()
	heals := p.heals
	p.mu.Unlock()
	<-heals
}
