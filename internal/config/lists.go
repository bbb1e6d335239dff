package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"go.yaml.in/yaml/v3"

	"github.com/updaterd/updaterd/internal/notify"
	"github.com/updaterd/updaterd/internal/updater"
)

// Docker is one Docker host.
type Docker struct {
	// Name is the first segment of the ids of its workloads.
	Name string
	// Endpoint is unix://, tcp://, http:// or https://; "" is Docker's default socket.
	Endpoint string
	TLS      TLS
}

// TLS are the paths of what a connection is secured with. The zero TLS is none.
type TLS struct {
	CA        string // what the server's certificate must be signed by
	Cert, Key string // who we are
}

// Registry is what a registry needs beyond what Docker's own config.json says.
type Registry struct {
	// Host is the host and, if it is not 443, the port; docker.io for Docker Hub.
	Host string
	// PlainHTTP: it speaks no TLS.
	PlainHTTP bool
	// CA is the path of the certificate that its own must be signed by.
	CA string
	// Username and PasswordFile are both set or both empty.
	Username     string
	PasswordFile string
}

// Password reads the password file, without the line end after it. It is read
// at each use, so a secret that was changed needs no reload. It must never be
// logged.
func (r Registry) Password() (string, error) {
	secret, err := readSecret(r.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("reading the password for %s from %s: %w", r.Host, r.PasswordFile, err)
	}
	return secret, nil
}

// Notify is one place that is told what happens.
type Notify struct {
	// Name is for people; "" is none.
	Name string
	// URL is a webhook, or a service. It may hold a token: never print it.
	URL string
	// Secret signs what a webhook is sent; "" is none. Never print it.
	Secret string
	// On are the events it is told of, besides failed. Never empty.
	On []updater.Event
	// Logs: it is told the log lines of what went wrong.
	Logs bool
	// Batch: a webhook is told several events in one request.
	Batch bool
	// Title and Text are nil where nobody wrote a template.
	Title, Text *template.Template
}

// Webhooks say where registries may tell us of pushes, and which may.
type Webhooks struct {
	Listen  string // "" is nowhere
	TLS     TLS    // cert and key
	Senders []Sender
}

// settle checks what the keys of webhooks say together.
func (w *Webhooks) settle(d *document, merged map[string]written) {
	w.TLS.settle(d, merged, "webhooks.tls")
	if cert := merged["webhooks.tls.cert"]; w.Listen == "" && w.TLS.Cert != "" {
		d.problems = append(d.problems, cert.from.problem(errors.New("means nothing without webhooks.listen; write an address to listen on, or remove it")))
	}
}

// Sender is a registry that may tell us of pushes.
type Sender struct {
	Name, Kind string
	// Secret is what it proves itself by. Never print it.
	Secret string
	// Registry is how references name it; "" takes its word.
	Registry string
}

// dockerKeys are the keys of an entry of docker.
func dockerKeys() []key[Docker] {
	return []key[Docker]{
		without("name", readName, func(d *Docker) *string { return &d.Name }),
		without("endpoint", readEndpoint, func(d *Docker) *string { return &d.Endpoint }),
		without("tls.ca", readPath, func(d *Docker) *string { return &d.TLS.CA }),
		without("tls.cert", readPath, func(d *Docker) *string { return &d.TLS.Cert }),
		without("tls.key", readPath, func(d *Docker) *string { return &d.TLS.Key }),
	}
}

func (c *Config) readDocker(d *document, f field, listed bool, vars, names map[string]string) []Docker {
	keys := dockerKeys()
	show := func(at string, values map[string]written) {
		for _, k := range keys {
			if w, ok := values[k.name]; ok {
				c.show(join(at, k.name), w, k.secret)
			}
		}
	}
	if !listed {
		h := Docker{Name: "local"}
		values := fromDockerHost(d, vars)
		values["name"] = written{"local", "local", place{source: "default"}}
		put(&h, keys, values)
		show("docker[0]", values)
		return []Docker{h}
	}
	var hosts []Docker
	endpoints := map[string]string{}
	entries(d, f, "docker", "Docker hosts", namesOf(keys), func(at string, line int, fields map[string]field) {
		values := decode(d, fields, at, keys)
		if _, named := fields["name"]; !named {
			d.problem(line, at, "has no name; write one, such as name: local")
		}
		_, addressed := fields["endpoint"]
		if !addressed {
			for name, w := range fromDockerHost(d, vars) {
				if _, own := fields[name]; !own {
					values[name] = w
				}
			}
		}
		var h Docker
		put(&h, keys, values)
		for _, path := range []*string{&h.TLS.CA, &h.TLS.Cert, &h.TLS.Key} {
			*path = d.beside(*path)
		}
		switch {
		case h.TLS != (TLS{}) && strings.HasPrefix(h.Endpoint, "unix:"):
			d.problem(line, at+".tls", "is for tcp:// endpoints; remove it, or write the endpoint as tcp://HOST:2376")
		case addressed:
			checkTLS(d, values, h.TLS)
		}
		distinct(d, values["name"], names)
		distinct(d, values["endpoint"], endpoints)
		show(at, values)
		hosts = append(hosts, h)
	})
	if f.value.Kind == yaml.SequenceNode && len(f.value.Content) == 0 {
		d.problem(f.key.Line, "docker", "lists nothing, so nothing would be watched; list a host, or remove the key for the one at DOCKER_HOST")
	}
	return hosts
}

// fromDockerHost is what Docker's own variables say about the host to speak to.
func fromDockerHost(d *document, vars map[string]string) map[string]written {
	variable := func(name, value string) written {
		return written{value, value, place{file: "environment", key: name, source: "environment " + name}}
	}
	host := vars["DOCKER_HOST"]
	if host == "" {
		return map[string]written{"endpoint": {"", "unix:///var/run/docker.sock", place{source: "default"}}}
	}
	values := map[string]written{"endpoint": variable("DOCKER_HOST", host)}
	if _, err := readEndpoint(raw{text: host}); err != nil {
		d.problems = append(d.problems, values["endpoint"].from.problem(err))
	}
	if dir := vars["DOCKER_CERT_PATH"]; dir != "" && !strings.HasPrefix(host, "unix:") {
		var t TLS
		for name, path := range map[string]*string{"ca": &t.CA, "cert": &t.Cert, "key": &t.Key} {
			*path = dir + "/" + name + ".pem"
			values["tls."+name] = variable("DOCKER_CERT_PATH", *path)
		}
		checkTLS(d, values, t)
	}
	return values
}

// checkTLS reads what a connection will need, so that a bad path shows when
// the file is checked and not at night.
func checkTLS(d *document, values map[string]written, t TLS) {
	if t.CA != "" {
		d.checkCA(values["tls.ca"].from, t.CA)
	}
	switch {
	case t.Cert == "" && t.Key == "":
	case t.Key == "":
		d.problems = append(d.problems, values["tls.cert"].from.problem(errors.New("needs tls.key; name the key of the certificate")))
	case t.Cert == "":
		d.problems = append(d.problems, values["tls.key"].from.problem(errors.New("needs tls.cert; name the certificate of the key")))
	default:
		d.checkPair(values["tls.cert"].from, values["tls.key"].from, t)
	}
}

func (d *document) checkPair(certFrom, keyFrom place, t TLS) {
	cert, err := readNamed(t.Cert)
	if err != nil {
		d.problems = append(d.problems, certFrom.problem(unreadable(t.Cert, err)))
	}
	key, err2 := readNamed(t.Key)
	if err2 != nil {
		d.problems = append(d.problems, keyFrom.problem(unreadable(t.Key, err2)))
	}
	if err != nil || err2 != nil {
		return
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		d.problems = append(d.problems, certFrom.problem(fmt.Errorf("%s and %s are no certificate and its key: %w; name a pair in PEM", t.Cert, t.Key, err)))
	}
}

func (d *document) checkCA(from place, path string) {
	data, err := readNamed(path)
	switch {
	case err != nil:
		d.problems = append(d.problems, from.problem(unreadable(path, err)))
	case !x509.NewCertPool().AppendCertsFromPEM(data):
		d.problems = append(d.problems, from.problem(fmt.Errorf("%s holds no certificate; name one in PEM", path)))
	}
}

func unreadable(path string, err error) error {
	return fmt.Errorf("%s cannot be read: %w; mend the path or the permissions", path, err)
}

// distinct reports a value that an entry before it has too.
func distinct(d *document, w written, seen map[string]string) {
	if w.value == nil {
		return
	}
	if before, twice := seen[w.text]; twice {
		d.problems = append(d.problems, w.from.problem(fmt.Errorf("%q is listed before (%s); keep one", w.text, before)))
		return
	}
	seen[w.text] = w.from.source
}

// readName takes the name of a backend, which becomes part of ids.
func readName(r raw) (string, error) {
	s, err := r.scalar("a name", "!!str")
	if err != nil {
		return "", err
	}
	if !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`).MatchString(s) {
		return "", fmt.Errorf("%q is no name; write letters, digits, dots, dashes and underscores, 63 at most", s)
	}
	return s, nil
}

// readEndpoint takes the address of a Docker engine.
func readEndpoint(r raw) (string, error) {
	const remedy = "write it as unix:///var/run/docker.sock or tcp://HOST:2376"
	s, err := r.scalar("an endpoint", "!!str")
	if err != nil {
		return "", err
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", fmt.Errorf("%q is no endpoint; %s", s, remedy)
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") || u.Path == "/" {
			return "", fmt.Errorf("%q names no socket from the root; %s", s, remedy)
		}
	case "tcp", "http", "https":
		if u.Hostname() == "" {
			return "", fmt.Errorf("%q names no host; %s", s, remedy)
		}
	case "ssh":
		return "", fmt.Errorf("%q: ssh is not spoken; forward the socket (ssh -L) and %s", s, remedy)
	default:
		return "", fmt.Errorf("%q is no endpoint; %s", s, remedy)
	}
	return s, nil
}

// registryKeys are the keys of an entry of registries.
func registryKeys() []key[Registry] {
	return []key[Registry]{
		without("host", readHost, func(r *Registry) *string { return &r.Host }),
		with("plain-http", "false", readFlag, func(r *Registry) *bool { return &r.PlainHTTP }),
		without("ca", readPath, func(r *Registry) *string { return &r.CA }),
		without("username", readText, func(r *Registry) *string { return &r.Username }),
		without("password-file", readPath, func(r *Registry) *string { return &r.PasswordFile }),
	}
}

func (c *Config) readRegistries(d *document, f field) {
	keys := registryKeys()
	known := namesOf(keys)
	known.refused = map[string]string{
		"password": "does not belong in this file; put the password in a file of its own and name that with password-file",
	}
	hosts := map[string]string{}
	entries(d, f, "registries", "registries", known, func(at string, line int, fields map[string]field) {
		values := decode(d, fields, at, keys)
		var r Registry
		put(&r, keys, values)
		r.CA, r.PasswordFile = d.beside(r.CA), d.beside(r.PasswordFile)
		report := func(name string, err error) {
			d.problems = append(d.problems, values[name].from.problem(err))
		}
		if _, named := fields["host"]; !named {
			d.problem(line, at, "has no host; write one, such as host: registry.example.com:5000")
		}
		if r.CA != "" {
			d.checkCA(values["ca"].from, r.CA)
		}
		_, withName := fields["username"]
		_, withFile := fields["password-file"]
		switch {
		case withName && !withFile:
			d.problem(fields["username"].line(), at+".username", "needs password-file; name the file that holds the password")
		case withFile && !withName:
			d.problem(fields["password-file"].line(), at+".password-file", "needs username; write whose password it is")
		case r.PasswordFile != "":
			if _, err := readSecret(r.PasswordFile); err != nil {
				report("password-file", unreadable(r.PasswordFile, err))
			}
		}
		if r.PlainHTTP && r.CA != "" {
			report("ca", errors.New("means nothing with plain-http; remove one of them"))
		}
		host := values["host"]
		host.text = r.Host
		distinct(d, host, hosts)
		for _, k := range keys {
			if w, ok := values[k.name]; ok {
				c.show(join(at, k.name), w, k.secret)
			}
		}
		c.Registries = append(c.Registries, r)
	})
}

// readHost takes a registry as references begin: host and port.
func readHost(r raw) (string, error) {
	const remedy = "write the host alone, such as ghcr.io or registry.example.com:5000"
	s, err := r.scalar("a host", "!!str")
	if err != nil {
		return "", err
	}
	u, err := url.Parse("//" + s)
	if err != nil || u.Host != s || u.Hostname() == "" {
		return "", fmt.Errorf("%q is no host; %s", s, remedy)
	}
	s = strings.ToLower(s)
	switch s {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com", "hub.docker.com":
		return "", fmt.Errorf("%q: images of Docker Hub begin with docker.io; write docker.io", s)
	}
	return s, nil
}

// notifyEntry is an entry of notify before its files have been read.
type notifyEntry struct {
	Notify
	urlFile, secretFile string
}

// notifyKeys are the keys of an entry of notify.
func notifyKeys() []key[notifyEntry] {
	type e = notifyEntry
	url := without("url", readAddress, func(e *e) *string { return &e.URL })
	url.secret = true
	return []key[e]{
		without("name", readName, func(e *e) *string { return &e.Name }),
		url,
		without("url-file", readPath, func(e *e) *string { return &e.urlFile }),
		without("secret-file", readPath, func(e *e) *string { return &e.secretFile }),
		with("on", "updated, restored, failed, awaiting-approval, registry-trouble, registry-well", readEvents, func(e *e) *[]updater.Event { return &e.On }),
		with("logs", "false", readFlag, func(e *e) *bool { return &e.Logs }),
		with("batch", "false", readFlag, func(e *e) *bool { return &e.Batch }),
		without("title", readTemplate, func(e *e) **template.Template { return &e.Title }),
		without("template", readTemplate, func(e *e) **template.Template { return &e.Text }),
	}
}

func (c *Config) readNotify(d *document, f field) {
	keys := notifyKeys()
	known := namesOf(keys)
	known.refused = map[string]string{
		"secret": "does not belong in this file; put the secret in a file of its own and name that with secret-file",
	}
	named, addressed := map[string]string{}, map[string]string{}
	entries(d, f, "notify", "places to tell", known, func(at string, line int, fields map[string]field) {
		values := decode(d, fields, at, keys)
		report := func(name string, err error) {
			d.problems = append(d.problems, values[name].from.problem(err))
		}
		for _, k := range keys {
			if _, written := fields[k.name]; !written && !k.optional {
				w := readDefault(k)
				w.from = place{source: "default"}
				values[k.name] = w
			}
		}
		var e notifyEntry
		put(&e, keys, values)
		_, direct := fields["url"]
		indirect, inFile := fields["url-file"]
		switch {
		case direct && inFile:
			d.problem(indirect.line(), at, "has both url and url-file; keep one")
		case !direct && !inFile:
			d.problem(line, at, "has no address; write url, or url-file to keep its token out of this file")
		case e.urlFile != "":
			e.urlFile = d.beside(e.urlFile)
			secret, err := readSecret(e.urlFile)
			if err != nil {
				err = unreadable(e.urlFile, err)
			} else if e.URL, err = readAddress(raw{text: secret}); err != nil {
				err = fmt.Errorf("%s holds no address: it %w", e.urlFile, err)
			}
			if err != nil {
				report("url-file", err)
			}
		}
		if e.secretFile != "" {
			var err error
			e.secretFile = d.beside(e.secretFile)
			if e.Secret, err = readSecret(e.secretFile); err != nil {
				report("secret-file", unreadable(e.secretFile, err))
			}
		}
		webhook := strings.HasPrefix(strings.ToLower(e.URL), "http")
		for _, name := range []string{"secret-file", "batch"} {
			if w, written := fields[name]; written && e.URL != "" && !webhook {
				d.problem(w.line(), join(at, name), "is for webhooks, whose address begins with https://; remove it")
			}
		}
		if w, written := fields["title"]; written && webhook {
			d.problem(w.line(), join(at, "title"), "is for services, whose messages have a title; remove it, or write it into the template")
		}
		if w, written := fields["batch"]; written && e.Batch && e.Text != nil {
			d.problem(w.line(), join(at, "batch"), "means nothing with a template, which is given all that there is; remove it")
		}
		distinct(d, values["name"], named)
		if e.Name == "" && e.URL != "" {
			if before, twice := addressed[e.URL]; twice { // the address is not shown
				d.problem(line, at, "has the address of another (%s); keep one, or give them names", before)
			}
			addressed[e.URL] = at
		}
		for _, k := range keys {
			if w, ok := values[k.name]; ok {
				c.show(join(at, k.name), w, k.secret)
			}
		}
		c.Notify = append(c.Notify, e.Notify)
	})
}

// readAddress takes the address of a webhook or a service. Its errors do not show
// it, since it may hold a token.
func readAddress(r raw) (string, error) {
	s, err := r.scalar("an address such as https://example.com/hook", "!!str")
	if err != nil {
		return "", errors.New("is no text; write an address such as https://example.com/hook")
	}
	return s, notify.CheckAddress(s)
}

// readTemplate takes a template of a message, which is tried on one of each kind.
func readTemplate(r raw) (*template.Template, error) {
	s, err := r.scalar("a template", "!!str")
	if err != nil {
		return nil, err
	}
	t, err := notify.ParseTemplate(s)
	if err != nil {
		return nil, fmt.Errorf("is no template of a message: %w; docs/notifications.md says what there is", err)
	}
	return t, nil
}

// senderEntry is an entry of webhooks.senders before its file has been read.
type senderEntry struct {
	Sender
	secretFile string
}

// senderKeys are the keys of an entry of webhooks.senders.
func senderKeys() []key[senderEntry] {
	type e = senderEntry
	return []key[e]{
		without("name", readName, func(e *e) *string { return &e.Name }),
		without("kind", readChoice("docker-hub", "ghcr", "harbor", "gitea", "distribution"), func(e *e) *string { return &e.Kind }),
		without("secret-file", readPath, func(e *e) *string { return &e.secretFile }),
		without("registry", readHost, func(e *e) *string { return &e.Registry }),
	}
}

// readSenders reads webhooks.senders; f is empty where nobody wrote it.
func (c *Config) readSenders(d *document, f field) {
	if f.key == nil {
		if c.Webhooks.Listen != "" {
			d.problem(0, "webhooks.listen", "has nobody to listen to; list who may post there below webhooks.senders, or remove it")
		}
		return
	}
	keys := senderKeys()
	known := namesOf(keys)
	known.refused = map[string]string{
		"secret": "does not belong in this file; put the secret in a file of its own and name that with secret-file",
	}
	named := map[string]string{}
	entries(d, f, "webhooks.senders", "senders", known, func(at string, line int, fields map[string]field) {
		values := decode(d, fields, at, keys)
		var e senderEntry
		put(&e, keys, values)
		for name, remedy := range map[string]string{
			"name":        "write one, which becomes a part of its path",
			"kind":        "write docker-hub, ghcr, harbor, gitea or distribution",
			"secret-file": "name the file that holds what it proves itself by; nobody is believed without",
		} {
			if _, written := fields[name]; !written {
				d.problem(line, join(at, name), "is not there; %s", remedy)
			}
		}
		if e.secretFile != "" {
			e.secretFile = d.beside(e.secretFile)
			var err error
			if e.Secret, err = readSecret(e.secretFile); err != nil {
				err = unreadable(e.secretFile, err)
			} else {
				err = safeSecret(e.Kind, e.Secret)
			}
			if err != nil {
				d.problems = append(d.problems, values["secret-file"].from.problem(err))
			}
		}
		if w, written := fields["registry"]; written && (e.Kind == "docker-hub" || e.Kind == "ghcr") {
			d.problem(w.line(), join(at, "registry"), "means nothing for %s, which is always the same; remove it", e.Kind)
		}
		distinct(d, values["name"], named)
		for _, k := range keys {
			if w, ok := values[k.name]; ok {
				c.show(join(at, k.name), w, k.secret)
			}
		}
		c.Webhooks.Senders = append(c.Webhooks.Senders, e.Sender)
	})
	if f.value.Kind == yaml.SequenceNode && len(f.value.Content) == 0 && c.Webhooks.Listen != "" {
		d.problem(f.key.Line, "webhooks.senders", "lists nobody, so nobody could post there; list one, or remove webhooks.listen")
	}
}

// safeSecret says what is wrong with a secret, without showing it.
func safeSecret(kind, secret string) error {
	const least = 16
	if len(secret) < least {
		return fmt.Errorf("holds a secret of less than %d characters, which can be guessed; make one with: openssl rand -hex 32", least)
	}
	if kind == "docker-hub" && strings.Trim(secret, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return errors.New("holds a secret with characters that a URL does not keep; for Docker Hub, make one with: openssl rand -hex 32")
	}
	return nil
}

// readDefault is the default of a key.
func readDefault[T any](k key[T]) written {
	v, err := k.read(raw{text: k.builtin})
	if err != nil { // a test reads them all
		return written{}
	}
	return written{value: v, text: k.builtin, from: place{key: k.name, source: "default"}}
}

// readEvents takes a list of events, or one text with commas.
func readEvents(r raw) ([]updater.Event, error) {
	words, err := readList(r)
	if err != nil {
		return nil, err
	}
	known := []updater.Event{
		updater.EventUpdated, updater.EventRestored, updater.EventFailed, updater.EventRefused,
		updater.EventSuperseded, updater.EventForgotten, updater.EventRolledBack,
		updater.EventRecreated, updater.EventRestarted,
		updater.EventFound, updater.EventAwaitingApproval, updater.EventRejected, updater.EventRegistryTrouble, updater.EventRegistryWell,
		updater.EventHeld, updater.EventReleased, updater.EventApproved,
		updater.EventPaused, updater.EventResumed, updater.EventUpdateAsked, updater.EventRollbackAsked,
	}
	texts := make([]string, len(known))
	for i, e := range known {
		texts[i] = string(e)
	}
	var events []updater.Event
	for _, w := range words {
		if !slices.Contains(texts, w) {
			return nil, fmt.Errorf("%q is no event%s", w, meant(w, texts))
		}
		if !slices.Contains(events, updater.Event(w)) {
			events = append(events, updater.Event(w))
		}
	}
	if len(events) == 0 {
		return nil, errors.New("names no event, so nothing would be told; name some of " + strings.Join(texts, ", ") + ", or remove the key")
	}
	return events, nil
}

// readSecret reads a file that holds one secret, without the line end that an
// editor leaves after it.
func readSecret(path string) (string, error) {
	data, err := readNamed(path)
	if err != nil {
		return "", err
	}
	secret := string(bytes.TrimRight(data, "\r\n"))
	if secret == "" {
		return "", errors.New("it is empty")
	}
	return secret, nil
}
