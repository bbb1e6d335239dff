package updater

import "context"

// Registry answers what registries hold, as its credentials may see it. All
// methods block, are safe for concurrent use, and may answer from what
// the same pass has already learnt. A *Refusal says why there is no answer
// (Unauthorized, NotFound, RateLimited, PlatformMissing, Unsupported); any
// other error means that the registry could not be asked or talked nonsense.
type Registry interface {
	// Tags lists the tags of ref's repository. The list is whole or an error.
	Tags(ctx context.Context, ref string) ([]string, error)
	// Resolve returns the digest that ref's tag stands for now.
	Resolve(ctx context.Context, ref string) (digest string, err error)
	// Image returns the image under digest in ref's repository, with the
	// digests of its manifest and config for the platform. A digest never
	// changes its meaning, so answers are kept.
	Image(ctx context.Context, ref, digest string, p Platform) (Image, error)
	// As is the registry as it shows itself to who has these logins. They go before
	// its own credentials, and what they are told is told to nobody else. nil brings
	// none.
	As(l Logins) Registry
	// NewPass forgets what must be asked anew in each pass: tags and what they
	// stand for, and hosts that asked for patience which is over.
	NewPass()
}

// Credential is what a registry wants to see. The zero Credential is anonymous.
// It has no String or log form on purpose: never print one.
type Credential struct {
	Username, Password string
	// IdentityToken is an OAuth2 refresh token, instead of a password.
	IdentityToken string
}

// Logins are the credentials that a workload brings, besides those of the
// configuration.
type Logins interface {
	// Read returns those there are, in the order in which they are to be tried. It is
	// called for each question about the workload's image, so it answers from what it
	// knows for as long as that can be right. again says that a registry took none of
	// those returned before, so that they may have been renewed. why, for people, says
	// what of them could not be read; the rest counts all the same.
	Read(ctx context.Context, again bool) (logins []Login, why string)
}

// Login holds credentials for some registries.
type Login struct {
	// Source names where it is kept, for people: "Secret shop/regcred".
	Source string
	// Config is what docker login writes in config.json; its "auths" count.
	Config []byte
}

// String keeps secrets out of what is printed by accident.
func (l Login) String() string { return "login from " + l.Source }

// Notifier tells people what happened.
type Notifier interface {
	// Notify keeps the message for delivery and returns within moments: it waits
	// for no receiver. A failure is its own to log, since nothing that an update
	// does may depend on it. The same entry may come again after a crash.
	Notify(ctx context.Context, e Entry)
}
