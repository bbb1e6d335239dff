package journal

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Owner returns the id of the installation whose state directory is dir, for
// marks on containers that tell its changes from those of another. It is made
// once, at random, and kept in the file "owner"; processes that race for it
// get the same. It may wait a few seconds for another process.
func Owner(dir string) (string, error) {
	path := filepath.Join(dir, "owner")
	id, err := readOwner(path)
	if err == nil {
		return id, nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoOwner) {
		id, err = makeOwner(dir, path)
	}
	if err != nil {
		return "", remedy(dir, fmt.Errorf("the id of this installation: %w", err))
	}
	return id, nil
}

// errNoOwner: what the file holds is no id. A new one does no harm: changes
// under way of the old one are taken for another installation's until their
// time is over.
var errNoOwner = errors.New("no id of an installation")

const ownerBytes = 16

func readOwner(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	id := string(content[:max(0, len(content)-1)]) // without the line's end
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != ownerBytes || content[len(content)-1] != '\n' {
		return "", fmt.Errorf("%s: %w", path, errNoOwner)
	}
	return id, nil
}

func makeOwner(dir, path string) (string, error) {
	if err := makeDir(dir); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errBusy)
	defer cancel()
	file, err := openLocked(ctx, path+".new", os.O_RDWR|os.O_CREATE)
	if err != nil {
		return "", err
	}
	defer release(file)
	// Somebody may have been here while we waited for the lock.
	if id, err := readOwner(path); err == nil {
		_ = os.Remove(file.Name()) // under the lock; a stray one does no harm
		return id, nil
	}
	raw := make([]byte, ownerBytes)
	rand.Read(raw) // never fails, see its documentation
	id := hex.EncodeToString(raw)
	if err := file.Truncate(0); err != nil {
		return "", err
	}
	if _, err := file.WriteAt([]byte(id+"\n"), 0); err != nil {
		return "", err
	}
	if err := file.Sync(); err != nil {
		return "", err
	}
	return id, rename(file.Name(), path)
}
