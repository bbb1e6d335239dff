// Package cluster holds the tests of the built program in a real cluster: etcd,
// API server, controller-manager and scheduler as people run them, with nodes that
// are played. It is a module of its own, so that what only tests need stays out of
// the program's requirements; Kubernetes itself, which is never linked into a test,
// is another (e2e/cluster/kubernetes).
//
// Run it with `make test-cluster`, or here with `go test ./...`. The first time it
// builds Kubernetes, some 6 minutes on two cores, and keeps it below
// updaterd/cluster in $UPDATERD_CACHE or the user's cache. To look around in one by
// hand: `../cluster.sh run kubectl get nodes`, or a shell in the place of kubectl.
//
// What a played node cannot show is tried on a real one, in the package kubelet.
package cluster
