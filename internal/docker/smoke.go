package docker

import (
	"context"
	"errors"

	"github.com/updaterd/updaterd/internal/updater"
)

// Test implements updater.Backend.
func (h *Host) Test(context.Context, updater.Change, int) (updater.Result, error) {
	return updater.Result{}, errors.New("health.test is not supported on a docker host yet")
}
