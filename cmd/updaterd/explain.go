package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"github.com/updaterd/updaterd/internal/policy"
	"github.com/updaterd/updaterd/internal/updater"
)

// explanation is what explain prints as JSON.
type explanation struct {
	Image    string              `json:"image"`
	Policy   string              `json:"policy"`
	Selected *string             `json:"selected"` // the tag it should run, nil when there is none
	Reason   policy.Reason       `json:"reason"`
	Tags     []policy.TagVerdict `json:"tags"`

	detail string
}

func (p program) explainCommand(s *shared) *cobra.Command {
	var spec policy.Spec
	var tagFile string
	c := &cobra.Command{
		Use:   "explain IMAGE",
		Short: "Say of every tag why it would be taken or dropped",
		Long: `Say of every tag of IMAGE's repository why a workload that runs IMAGE would take
it or drop it. What no flag says comes from the configuration, by the rules that
fit the image. IMAGE may carry a tag that is no version (latest): then there is
nothing to be downgraded from.`,
		Example: `  updaterd explain nginx:1.27 --policy minor
  printf '%s\n' 1.4.1 1.4.2 1.5.0 | updaterd explain acme/web:1.4.1 --policy patch --tags -`,
		Args: cobra.ExactArgs(1),
	}
	o := outputFlag(c)
	f := c.Flags()
	f.StringVar(&spec.Policy, "policy", "", "`POLICY`: digest, semver:<range>, patch, minor, major, newest or alphabetical")
	f.StringVar(&spec.Include, "include", "", "only tags that match this regular expression `RE`")
	f.StringVar(&spec.Exclude, "exclude", "", "no tags that match this regular expression `RE`")
	f.StringVar(&spec.Extract, "extract", "", "`TEMPLATE` over the groups of --include; what it yields is compared")
	f.BoolVar(&spec.AllowDowngrade, "allow-downgrade", false, "let a lower tag be selected")
	f.StringVar(&tagFile, "tags", "", "read the tags from `FILE`, one per line (-: from standard input), instead of asking the registry")

	c.RunE = func(c *cobra.Command, args []string) error {
		image := args[0]
		named, err := reference.ParseNormalizedNamed(image)
		if err != nil {
			return usageError{fmt.Errorf("image %q: %w; write it as NAME:TAG", image, err)}
		}
		current := "latest"
		if t, ok := named.(reference.Tagged); ok {
			current = t.Tag()
		}
		cfg, err := p.load(s)
		if err != nil {
			return err
		}
		settings, err := cfg.Settings(updater.Workload{Image: image})
		if err != nil {
			return err
		}
		wanted := settings.Policy
		for flag, take := range map[string]func(){
			"policy":          func() { wanted.Policy = spec.Policy },
			"include":         func() { wanted.Include = spec.Include },
			"exclude":         func() { wanted.Exclude = spec.Exclude },
			"extract":         func() { wanted.Extract = spec.Extract },
			"allow-downgrade": func() { wanted.AllowDowngrade = spec.AllowDowngrade },
		} {
			if f.Changed(flag) {
				take()
			}
		}
		rule, err := policy.Parse(wanted)
		if err != nil {
			return usageError{err}
		}
		var tags []string
		if tagFile != "" {
			tags, err = p.readTags(tagFile)
		} else {
			registry, newErr := newRegistry(cfg, p.logger(quiet(cfg.Log)), p.version, nil)
			if newErr != nil {
				return newErr
			}
			tags, err = registry.Tags(c.Context(), named.Name())
		}
		if err != nil {
			return err
		}
		e := explain(image, current, rule, tags)
		if *o == asJSON {
			return printJSON(p.stdout, e)
		}
		return p.printExplanation(e)
	}
	return c
}

// explain is pure.
func explain(image, current string, rule policy.Rule, tags []string) explanation {
	sel := rule.Select(current, tags)
	e := explanation{Image: image, Policy: rule.String(), Reason: sel.Reason, Tags: sel.Tags, detail: sel.Detail}
	if e.Tags == nil {
		e.Tags = []policy.TagVerdict{}
	}
	if sel.Tag != "" {
		e.Selected = &sel.Tag
	}
	return e
}

func (p program) printExplanation(e explanation) error {
	selected := "none"
	if e.Selected != nil {
		selected = *e.Selected
	}
	_, err := fmt.Fprintf(p.stdout, "image     %s\npolicy    %s\nselected  %s\nreason    %s: %s\n\n",
		printable(e.Image), e.Policy, printable(selected), e.Reason, printable(e.detail))
	if err != nil {
		return err
	}
	var rows [][]string
	for _, t := range e.Tags {
		rows = append(rows, []string{t.Tag, string(t.Verdict), t.Why})
	}
	return printTable(p.stdout, []string{"TAG", "VERDICT", "WHY"}, rows)
}

// maxTags bounds what is read from a file: ten times the largest repository
// of Docker Hub that is known to us.
const maxTags = 32 << 20

func (p program) readTags(file string) ([]string, error) {
	in := p.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usageError{fmt.Errorf("tags: %w", err)}
		}
		defer f.Close()
		in = f
	}
	var tags []string
	lines := bufio.NewScanner(io.LimitReader(in, maxTags))
	for lines.Scan() {
		if tag := strings.TrimSpace(lines.Text()); tag != "" {
			tags = append(tags, tag)
		}
	}
	if err := lines.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = errors.New("a line is too long; write one tag per line")
		}
		return nil, usageError{fmt.Errorf("tags from %s: %w", file, err)}
	}
	return slices.Clip(tags), nil
}
