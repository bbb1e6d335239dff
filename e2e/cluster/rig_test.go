package cluster

import (
	"fmt"
	"sync"

	"github.com/updaterd/updaterd/e2e/cluster/rig"
)

// kinds are those whose pods run all the time, by how one called web is made.
var kinds = map[string]func(*rig.Space, rig.Spec){
	"deployment":  (*rig.Space).Deployment,
	"statefulset": (*rig.Space).StatefulSet,
	"daemonset":   (*rig.Space).DaemonSet,
}

// at is where in the calls to the API server something is to happen: before or
// after the n-th that changes something.
type at struct {
	n     int
	after bool
}

func (a at) String() string {
	if a.after {
		return fmt.Sprintf("after call %d", a.n)
	}
	return fmt.Sprintf("before call %d", a.n)
}

// once has do done there, at the first time. What it returns is answered.
func (a at) once(do func(rig.Call) error) rig.Hooks {
	var once sync.Once
	hook := func(c rig.Call) (err error) {
		if c.N == a.n {
			once.Do(func() { err = do(c) })
		}
		return err
	}
	if a.after {
		return rig.Hooks{After: hook}
	}
	return rig.Hooks{Before: hook}
}
