package webhook

import (
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// mostReferences bounds what one request may name.
const mostReferences = 100

// A parser reads which references a body says were pushed, as host, repository and
// tag. host is the registry's name where the body may not know it; "" where nobody
// said. None, and no error: the body tells of something else.
type parser func(body []byte, host string) ([]string, error)

var errShape = errors.New("the body is not what this kind of sender sends")

func read(body []byte, into any) error {
	if json.Unmarshal(body, into) != nil {
		return errShape
	}
	return nil
}

// dockerHub reads Docker Hub's webhook (docs.docker.com/docker-hub/repos/manage/webhooks).
// Its callback_url is not called.
func dockerHub(body []byte, _ string) ([]string, error) {
	var p struct {
		PushData struct {
			Tag string `json:"tag"`
		} `json:"push_data"`
		Repository struct {
			RepoName string `json:"repo_name"`
		} `json:"repository"`
	}
	if err := read(body, &p); err != nil {
		return nil, err
	}
	if p.Repository.RepoName == "" {
		return nil, errShape
	}
	return references("docker.io", p.Repository.RepoName, p.PushData.Tag), nil
}

// ghcr reads GitHub's events package and registry_package
// (docs.github.com/webhooks/webhook-events-and-payloads).
func ghcr(body []byte, _ string) ([]string, error) {
	type pkg struct {
		Name, Namespace string
		PackageType     string `json:"package_type"`
		PackageVersion  struct {
			PackageURL        string `json:"package_url"`
			ContainerMetadata struct {
				Tag struct{ Name string }
			} `json:"container_metadata"`
		} `json:"package_version"`
	}
	var p struct {
		Zen             *string // a ping
		Action          string
		Package         *pkg
		RegistryPackage *pkg `json:"registry_package"`
	}
	if err := read(body, &p); err != nil {
		return nil, err
	}
	which := p.Package
	if which == nil {
		which = p.RegistryPackage
	}
	if which == nil {
		if p.Zen != nil {
			return nil, nil
		}
		return nil, errShape
	}
	if !strings.EqualFold(which.PackageType, "container") || p.Action != "published" && p.Action != "updated" {
		return nil, nil
	}
	tag := which.PackageVersion.ContainerMetadata.Tag.Name
	if at, ok := strings.CutPrefix(which.PackageVersion.PackageURL, "ghcr.io/"); ok {
		name, written, _ := strings.Cut(at, ":")
		if tag == "" {
			tag = written
		}
		return references("ghcr.io", name, tag), nil
	}
	return references("ghcr.io", strings.ToLower(which.Namespace+"/"+which.Name), tag), nil
}

// harbor reads Harbor's own payload and its CloudEvents one
// (goharbor.io/docs, Configure Webhook Notifications).
func harbor(body []byte, host string) ([]string, error) {
	type data struct {
		Resources []struct {
			Tag         string `json:"tag"`
			ResourceURL string `json:"resource_url"`
		} `json:"resources"`
		Repository struct {
			FullName string `json:"repo_full_name"`
		} `json:"repository"`
	}
	var p struct {
		Type      string `json:"type"`
		EventData *data  `json:"event_data"`
		Data      *data  `json:"data"` // CloudEvents
	}
	if err := read(body, &p); err != nil {
		return nil, err
	}
	d := p.EventData
	if d == nil {
		d = p.Data
	}
	if p.Type == "" || d == nil {
		return nil, errShape
	}
	if p.Type != "PUSH_ARTIFACT" && p.Type != "harbor.artifact.pushed" {
		return nil, nil
	}
	var all []string
	for _, r := range d.Resources {
		at := host
		if at == "" {
			at, _, _ = strings.Cut(r.ResourceURL, "/")
		}
		all = append(all, references(at, d.Repository.FullName, r.Tag)...)
		if len(all) >= mostReferences {
			break
		}
	}
	return all, nil
}

// gitea reads the event package of Gitea and Forgejo
// (docs.gitea.com/usage/webhooks).
func gitea(body []byte, host string) ([]string, error) {
	var p struct {
		Action  string
		Package *struct {
			Owner struct {
				Login    string
				UserName string `json:"username"`
			}
			Type    string
			Name    string
			Version string
			HTMLURL string `json:"html_url"`
		}
	}
	if err := read(body, &p); err != nil {
		return nil, err
	}
	if p.Action == "" {
		return nil, errShape
	}
	if p.Package == nil || p.Package.Type != "container" || p.Action != "created" {
		return nil, nil
	}
	if host == "" {
		u, err := url.Parse(p.Package.HTMLURL)
		if err != nil {
			return nil, errShape
		}
		host = u.Host
	}
	owner := p.Package.Owner.Login
	if owner == "" {
		owner = p.Package.Owner.UserName
	}
	return references(host, strings.ToLower(owner+"/"+p.Package.Name), p.Package.Version), nil
}

// distribution reads the notifications of the registry that others are built on
// (distribution.github.io/distribution/about/notifications).
func distribution(body []byte, host string) ([]string, error) {
	var p struct {
		Events []struct {
			Action string
			Target struct {
				Repository string
				Tag        string
				URL        string
			}
			Request struct{ Host string }
		}
	}
	if err := read(body, &p); err != nil {
		return nil, err
	}
	if p.Events == nil {
		return nil, errShape
	}
	var all []string
	for _, e := range p.Events {
		if e.Action != "push" || e.Target.Tag == "" {
			continue // a blob, or the image of one platform
		}
		at := host
		if at == "" {
			at = e.Request.Host
		}
		if at == "" {
			if u, err := url.Parse(e.Target.URL); err == nil {
				at = u.Host
			}
		}
		all = append(all, references(at, e.Target.Repository, e.Target.Tag)...)
		if len(all) >= mostReferences {
			break
		}
	}
	return all, nil
}

// references is the one reference that these are, normalised as the engine does
// it; none if they are not one.
func references(host, repository, tag string) []string {
	if host == "" || repository == "" || tag == "" || strings.ContainsAny(host, "/@") {
		return nil
	}
	named, err := reference.ParseNormalizedNamed(strings.ToLower(host) + "/" + repository)
	if err != nil || !reference.IsNameOnly(named) {
		return nil
	}
	// A host that is no host would become a part of Docker Hub's repository.
	if domain := reference.Domain(named); domain != strings.ToLower(host) && !slices.Contains([]string{"index.docker.io"}, strings.ToLower(host)) {
		return nil
	}
	tagged, err := reference.WithTag(named, tag)
	if err != nil {
		return nil
	}
	return []string{tagged.String()}
}
