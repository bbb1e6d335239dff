// App is the small HTTP server that the test images hold. It serves its version
// at / and its health at /healthz, and misbehaves as its environment says:
//
//	APP_VERSION           what / answers
//	APP_PORT              where it listens; 8080
//	APP_EXIT_CODE         exit with this code ...
//	APP_EXIT_AFTER        ... after this long; at once
//	APP_LISTEN_AFTER      begin to listen only then; "never" hangs in start
//	APP_UNHEALTHY_AFTER   /healthz answers 503 from then on
//	APP_EAT_MEMORY        allocate until killed
//	APP_IGNORE_TERM       SIGTERM does nothing
//	APP_STOP_AFTER        take this long to end after SIGTERM
//	APP_WRITE             append the version as a line to this file
//	APP_LOG               print this line at the start
//	APP_LOG_LINES         print that many numbered lines at the start
//	APP_BROKEN            answer 500 at this path, healthy all the same
//	APP_SIGNALS           end by SIGHUP and SIGUSR1 as well, and append the name of
//	                      the signal as a line to this file
//	APP_FILES             serve this directory at /files/: GET, and PUT to write
//	APP_ROUTES            be a reverse proxy: "/=http://web:8080 /db/=http://db:8080",
//	                      and a name server at 127.0.0.1 that knows nothing
//
// `app -listenip=...` is a socket proxy, see guard. `app health` is for HEALTHCHECK: it exits 0 when /healthz says so. `app exit N`
// exits with N, `app get URL` fetches a page, with variables of the environment in
// its address: for hooks, probes and tests.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == "sh" {
		if len(args) != 2 || args[0] != "-c" {
			check(fmt.Errorf("sh: no -c LINE in %q", args))
		}
		words := strings.Fields(args[1])
		if len(words) < 2 || words[0] != "app" {
			check(fmt.Errorf("sh: no such command: %q", args[1]))
		}
		args = words[1:]
	}
	switch {
	case len(args) == 0:
		serve()
	case strings.HasPrefix(args[0], "-listenip="):
		guard(args)
	case args[0] == "health":
		get("http://127.0.0.1:" + port() + "/healthz")
	case args[0] == "get" && len(args) == 2:
		get(os.ExpandEnv(args[1]))
	case args[0] == "note" && len(args) == 3:
		note(args[1], args[2])
	case args[0] == "exit" && len(args) == 2:
		code, err := strconv.Atoi(args[1])
		check(err)
		os.Exit(code)
	default:
		// A changed command must be seen to have arrived.
		serve()
	}
}

func serve() {
	started := time.Now()
	version := os.Getenv("APP_VERSION")
	fmt.Printf("app %s starts\n", version)
	if line := os.Getenv("APP_LOG"); line != "" {
		fmt.Println(line)
	}
	for i := range number("APP_LOG_LINES") {
		fmt.Printf("line %d of %s\n", i+1, version)
	}
	if path := os.Getenv("APP_WRITE"); path != "" {
		note(path, version)
	}

	if os.Getenv("APP_EXIT_CODE") != "" {
		time.AfterFunc(duration("APP_EXIT_AFTER"), func() { os.Exit(number("APP_EXIT_CODE")) })
	}
	if os.Getenv("APP_EAT_MEMORY") != "" {
		go eat()
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	signals := os.Getenv("APP_SIGNALS")
	if signals != "" {
		signal.Notify(term, syscall.SIGHUP, syscall.SIGUSR1)
	}

	if os.Getenv("APP_LISTEN_AFTER") != "never" {
		time.AfterFunc(duration("APP_LISTEN_AFTER"), func() {
			l, err := net.Listen("tcp", ":"+port())
			check(err)
			check(http.Serve(l, handler(version, started)))
		})
	}
	for s := range term {
		if signals != "" {
			note(signals, unix.SignalName(s.(syscall.Signal)))
		}
		if os.Getenv("APP_IGNORE_TERM") != "" {
			continue
		}
		time.Sleep(duration("APP_STOP_AFTER"))
		os.Exit(0)
	}
}

func handler(version string, started time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, version)
	})
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if after := os.Getenv("APP_UNHEALTHY_AFTER"); after != "" && time.Since(started) >= duration("APP_UNHEALTHY_AFTER") {
			http.Error(w, "unhealthy since "+after, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "ok")
	})
	if path := os.Getenv("APP_BROKEN"); path != "" {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "out of order", http.StatusInternalServerError)
		})
	}
	// What the process was started with, to compare before and after.
	mux.HandleFunc("/self", func(w http.ResponseWriter, _ *http.Request) {
		host, _ := os.Hostname()
		dir, _ := os.Getwd()
		fmt.Fprintf(w, "args %q\nenv %q\nhost %s\ndir %s\nuid %d\n", os.Args, os.Environ(), host, dir, os.Getuid())
	})
	if dir := os.Getenv("APP_FILES"); dir != "" {
		mux.Handle("GET /files/", http.StripPrefix("/files", http.FileServer(http.Dir(dir))))
		mux.HandleFunc("PUT /files/{path...}", func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, r.PathValue("path")), b, 0o644)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	if routes := os.Getenv("APP_ROUTES"); routes != "" {
		go nameless()
		return proxy(mux, routes)
	}
	return mux
}

// proxy sends the requests below each path of routes, without that path, to a
// server, and its own health to mux.
func proxy(mux http.Handler, routes string) http.Handler {
	all := http.NewServeMux()
	all.Handle("/healthz", mux)
	for _, route := range strings.Fields(routes) {
		path, server, _ := strings.Cut(route, "=")
		to, err := url.Parse(server)
		check(err)
		p := httputil.NewSingleHostReverseProxy(to)
		// A connection that is kept open goes where the name led before.
		p.Transport = &http.Transport{DisableKeepAlives: true}
		all.Handle(path, http.StripPrefix(strings.TrimSuffix(path, "/"), p))
	}
	return all
}

// nameless is a name server that knows no names. Where the container is given it
// (127.0.0.1), the engine asks it for a name that is gone, and nobody has to wait
// for the servers of the machine.
func nameless() {
	conn, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		return // not root: then one has to wait
	}
	query := make([]byte, 512)
	for {
		n, from, err := conn.ReadFrom(query)
		check(err)
		if n < 12 {
			continue
		}
		query[2] |= 1 << 7            // an answer:
		query[3] = query[3]&^0x0f | 3 // no such domain
		_, err = conn.WriteTo(query[:n], from)
		check(err)
	}
}

// note appends a line to a file.
func note(path, line string) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(err)
	_, err = fmt.Fprintln(f, line)
	check(err)
	check(f.Close())
}

func eat() {
	var all [][]byte
	for {
		b := make([]byte, 4<<20)
		for i := 0; i < len(b); i += 512 {
			b[i] = 1
		}
		all = append(all, b)
		// Without a limit the machine would be eaten; a test wants at most this.
		if len(all) > 256 {
			select {}
		}
	}
}

func get(url string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	check(err)
	resp, err := http.DefaultClient.Do(req)
	check(err)
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	check(err)
	if resp.StatusCode != http.StatusOK {
		os.Exit(1)
	}
}

func port() string {
	if p := os.Getenv("APP_PORT"); p != "" {
		return p
	}
	return "8080"
}

func duration(key string) time.Duration {
	s := os.Getenv(key)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	check(err)
	return d
}

func number(key string) int {
	s := os.Getenv(key)
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	check(err)
	return n
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}
