package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// Record is what etcd has of an object, as the API server keeps it.
type Record struct {
	// Key is "/registry/pods/NAMESPACE/NAME".
	Key   []byte `json:"key"`
	Value []byte `json:"value"`
}

// Record is the one with this key.
func (p *Plane) Record(ctx context.Context, key string) (Record, error) {
	var answer struct {
		KVs []Record `json:"kvs"`
	}
	err := p.store(ctx, "range", map[string]any{"key": []byte(key)}, &answer)
	if err == nil && len(answer.KVs) != 1 {
		err = fmt.Errorf("etcd has nothing at %s", key)
	}
	if err != nil {
		return Record{}, err
	}
	return answer.KVs[0], nil
}

// Put writes records past the API server, which tells its clients of them as of any
// others. That is a hundred times as fast as asking it to make each.
func (p *Plane) Put(ctx context.Context, records []Record) error {
	const atOnce = 100 // etcd takes 128
	for len(records) > 0 {
		n := min(atOnce, len(records))
		var puts []any
		for _, r := range records[:n] {
			puts = append(puts, map[string]any{"requestPut": r})
		}
		if err := p.store(ctx, "txn", map[string]any{"success": puts}, nil); err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// store asks etcd.
func (p *Plane) store(ctx context.Context, what string, question, answer any) error {
	b, err := json.Marshal(question)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.etcd+"/v3/kv/"+what, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if b, err = io.ReadAll(resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New("etcd: " + resp.Status + ": " + string(b))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(b, answer)
}
