// Package report tells people and programs what a run was: as text for a terminal, as
// JSON, and as one HTML page with a picture. It takes a plan, a history, a story and a
// verdict, of a simulation or of real processes, and runs nothing.
//
// A report answers in this order: was a promise broken, and which; what was done to the
// mesh; what became of the guilty message; how did the whole run go; how to run it again.
//
// Open run.go first, then text.go and page.go. The picture is axis.go (time to places),
// picture.go (lanes, arrows) and series.go (what is counted over time).
package report
