package chaos

import (
	"errors"
	"testing"

	"github.com/meshq/meshq/sim/plan"
)

func TestCan(t *testing.T) {
	all := &Config{Network: Switched, Disks: true}
	for _, k := range plan.Kinds {
		err := all.Can(k.Kind)
		if real := k.Where&plan.InReal != 0; real != (err == nil) {
			t.Errorf("%s: real is %v, but %v", k.Kind, real, err)
		}
	}
	var cannot *CannotError
	for _, kind := range []plan.Kind{plan.Cut, plan.PowerCut, plan.WallJump, "flood"} {
		if err := (&Config{Network: Loopback}).Can(kind); !errors.As(err, &cannot) || cannot.Kind != kind || cannot.Reason == "" {
			t.Errorf("%s on loopback: %v", kind, err)
		}
	}
}
