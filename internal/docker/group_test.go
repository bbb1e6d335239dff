package docker

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/updaterd/updaterd/internal/updater"
)

func names(all []kin) []string {
	var names []string
	for _, k := range all {
		names = append(names, k.name)
	}
	return names
}

func TestWhatMovesTogether(t *testing.T) {
	service := func(name, needs string) map[string]string {
		return map[string]string{labelProject: "p", labelService: name, labelDependsOn: needs}
	}
	job := func(name, needs string) map[string]string {
		labels := service(name, needs)
		labels[labelOneOff] = "True"
		return labels
	}
	const vpnID = "320cf9f003dcf5eaf12d4256fa05ef2eade17f90209ed27bd1048827e181ba97"
	vpn := kin{id: vpnID, name: "vpn"}
	for name, row := range map[string]struct {
		all                          []kin
		replaced, restarted, related []string
	}{
		"nobody uses it": {
			[]kin{vpn, {id: "a", name: "a"}}, []string{"vpn"}, nil, nil},
		"by its id": {
			[]kin{vpn, {id: "a", name: "a", refs: []string{vpnID}}}, []string{"vpn", "a"}, nil, nil},
		"by its short id": {
			[]kin{vpn, {id: "a", name: "a", refs: []string{vpnID[:12]}}}, []string{"vpn", "a"}, nil, nil},
		"by its name, as a link shows it": {
			[]kin{vpn, {id: "a", name: "a", refs: []string{"/vpn"}}}, []string{"vpn", "a"}, nil, nil},
		"a name comes before the beginning of an id": {
			[]kin{vpn, {id: "x", name: "320c"}, {id: "a", name: "a", refs: []string{"320c"}}}, []string{"vpn"}, nil, nil},
		"what uses one that uses it": {
			[]kin{vpn, {id: "b", name: "b", refs: []string{"a"}}, {id: "a", name: "a", refs: []string{"vpn"}}}, []string{"vpn", "b", "a"}, nil, nil},
		"what it uses itself stays, and is related": {
			[]kin{{id: vpnID, name: "vpn", refs: []string{"data"}}, {id: "d", name: "data"}}, []string{"vpn"}, nil, []string{"data"}},
		"what uses the same, too, stays": {
			[]kin{{id: vpnID, name: "vpn", refs: []string{"data"}}, {id: "d", name: "data"}, {id: "a", name: "a", refs: []string{"data"}}},
			[]string{"vpn"}, nil, []string{"data", "a"}},
		"Compose restarts with it what says so": {
			[]kin{{id: vpnID, name: "vpn", labels: service("vpn", "")}, {id: "a", name: "a", labels: service("a", "vpn:service_started:true")}},
			[]string{"vpn"}, []string{"a"}, nil},
		"and leaves what only depends on it": {
			[]kin{{id: vpnID, name: "vpn", labels: service("vpn", "")}, {id: "a", name: "a", labels: service("a", "vpn:service_started:false")}},
			[]string{"vpn"}, nil, nil},
		"what uses a restarted one is restarted": {
			[]kin{{id: vpnID, name: "vpn", labels: service("vpn", "")}, {id: "a", name: "a", labels: service("a", "vpn:service_healthy:true")}, {id: "b", name: "b", refs: []string{"a"}}},
			[]string{"vpn"}, []string{"a", "b"}, nil},
		"what is replaced is not restarted besides": {
			[]kin{{id: vpnID, name: "vpn", labels: service("vpn", "")}, {id: "a", name: "a", refs: []string{"vpn"}, labels: service("a", "vpn:service_started:true")}},
			[]string{"vpn", "a"}, nil, nil},
		"a one-off that has ended uses nothing": {
			[]kin{vpn, {id: "a", name: "a", refs: []string{vpnID}, labels: job("a", ""), exited: true}}, []string{"vpn"}, nil, nil},
		"one that runs does": {
			[]kin{vpn, {id: "a", name: "a", refs: []string{vpnID}, labels: job("a", "")}}, []string{"vpn", "a"}, nil, nil},
		"what was stopped may be started again": {
			[]kin{vpn, {id: "a", name: "a", refs: []string{vpnID}, exited: true}}, []string{"vpn", "a"}, nil, nil},
		"Compose restarts no one-off": {
			[]kin{{id: vpnID, name: "vpn", labels: service("vpn", "")}, {id: "a", name: "a", labels: job("a", "vpn:service_started:true")}},
			[]string{"vpn"}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			g := groupOf(map[string]bool{vpnID: true}, row.all)
			require.Equal(t, row.replaced, names(g.replaced))
			require.Equal(t, row.restarted, names(g.restarted))
			require.Equal(t, row.related, names(g.related))
		})
	}
}

func TestTheOrderOfAGroup(t *testing.T) {
	all := []kin{{id: "1", name: "c"}, {id: "2", name: "b"}, {id: "3", name: "a"}}
	sorted, err := inOrder(all, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, names(sorted), "by name where nothing is needed")

	sorted, err = inOrder(all, edges{"3": {"1"}, "2": {"1", "elsewhere"}, "1": {"1"}})
	require.NoError(t, err)
	require.Equal(t, []string{"c", "a", "b"}, names(sorted), "what is needed comes first")

	_, err = inOrder(all, edges{"3": {"1"}, "1": {"3"}})
	refused(t, err, updater.InvalidSettings, "a, c depend on each other")
}
