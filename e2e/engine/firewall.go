package engine

import (
	"net/netip"
	"os/exec"

	"github.com/updaterd/updaterd/e2e/program"
)

// A Docker that runs on the machine, or once ran, leaves the policy of FORWARD
// at DROP, and the kernel asks the firewall about frames between two containers
// on one bridge as well. So each engine has one rule: what comes from its share
// of addresses and goes there is let through.

// openFirewall lets the containers of an engine reach each other. Where iptables
// is missing or does not work there is nothing that would keep them from it.
func openFirewall(subnet netip.Prefix) {
	if iptables("-C", subnet) != nil {
		_ = iptables("-I", subnet)
	}
}

// closeFirewall takes the rule away; twice does no harm. It goes before the
// bridge, whose name keeps the addresses from others.
func closeFirewall(subnet netip.Prefix) { _ = iptables("-D", subnet) }

func iptables(do string, subnet netip.Prefix) error {
	return exec.Command(program.Path("iptables"), "--wait", "5", do, "FORWARD",
		"--source", subnet.String(), "--destination", subnet.String(), "--jump", "ACCEPT").Run()
}
