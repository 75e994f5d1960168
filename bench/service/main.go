// Command service is the trivial service that the proxies forward to and that
// the authorization subrequests ask: it answers 200 to everything.
package main

import (
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	server := http.Server{
		Addr:              os.Args[1],
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("Hello!\n"))
		}),
	}
	log.Fatal(server.ListenAndServe())
}
