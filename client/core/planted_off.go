//go:build !mutants

package core

// Planting names a bug to bring into a core. In this build there is none.
type Planting struct{}

func (Planting) has(bug) bool { return false }
