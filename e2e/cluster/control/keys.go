package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// users are those that the API server knows by a token, each with its groups.
// Who else comes is somebody by a service account.
var users = []struct{ name, groups string }{
	{"admin", "system:masters"},
	{"system:kube-controller-manager", "system:masters"},
	{"system:kube-scheduler", ""},
}

// writeKeys makes the authority, the API server's certificate, the key of service
// accounts and the tokens.
func (p *Plane) writeKeys() error {
	ca, caKey, err := p.certify("ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "updaterd test CA"},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil, nil)
	if err != nil {
		return err
	}
	_, _, err = p.certify("server", &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(10, 96, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, caKey)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	if err := errors.Join(p.writeKey("accounts.key", key), p.writePEM("accounts.pub", "PUBLIC KEY", public)); err != nil {
		return err
	}
	p.tokens = map[string]string{}
	var lines strings.Builder
	for _, u := range users {
		p.tokens[u.name] = rand.Text()
		fmt.Fprintf(&lines, "%s,%s,%s,%s\n", p.tokens[u.name], u.name, u.name, u.groups)
	}
	return os.WriteFile(p.file("tokens.csv"), []byte(lines.String()), 0o600)
}

// certify signs a certificate, with its own key where no parent is given, and
// writes both to name.crt and name.key.
func (p *Plane) certify(name string, c, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(7*24*time.Hour)
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	return c, key, errors.Join(p.writePEM(name+".crt", "CERTIFICATE", der), p.writeKey(name+".key", key))
}

func (p *Plane) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return p.writePEM(name, "PRIVATE KEY", der)
}

func (p *Plane) writePEM(name, kind string, der []byte) error {
	return os.WriteFile(p.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// WriteKubeconfig writes a file by which somebody with this token reaches the API
// server at that URL.
func (p *Plane) WriteKubeconfig(path, url, token string) error {
	c := clientcmdapi.NewConfig()
	c.Clusters["test"] = &clientcmdapi.Cluster{Server: url, CertificateAuthority: p.file("ca.crt")}
	c.AuthInfos["test"] = &clientcmdapi.AuthInfo{Token: token}
	c.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test", Namespace: "default"}
	c.CurrentContext = "test"
	return clientcmd.WriteToFile(*c, path)
}

func (p *Plane) file(name string) string { return filepath.Join(p.Dir, name) }
