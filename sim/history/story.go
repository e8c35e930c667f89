package history

import "time"

// Story is what a picture of a run is drawn from.
type Story struct {
	Lanes     []Lane  `json:"lanes"`
	Arrows    []Arrow `json:"arrows"` // of the guilty message alone
	Biography []Line  `json:"biography"`
}

// Lane is the life of a node or client.
type Lane struct {
	Name   string `json:"name"`
	Client bool   `json:"client,omitempty"`
	Spans  []Span `json:"spans"`
}

// Span is a part of a life. What no span covers is up and well. Spans of different states
// may overlap.
type Span struct {
	From  time.Duration `json:"from"`
	To    time.Duration `json:"to"`
	State string        `json:"state"` // down, paused, cut, hurt (its disk lost something), slow
	Text  string        `json:"text,omitempty"`
}

// Arrow is a frame that has to do with the guilty message.
type Arrow struct {
	From  string        `json:"from"`
	To    string        `json:"to"`
	Sent  time.Duration `json:"sent"`
	Got   time.Duration `json:"got"` // when it arrived
	Lost  bool          `json:"lost,omitempty"`
	Label string        `json:"label"`
}

// Line is one moment in the life of the guilty message.
type Line struct {
	At    time.Duration `json:"at"`
	Where string        `json:"where"`
	Text  string        `json:"text"`
	Bad   bool          `json:"bad,omitempty"`   // here the promise broke
	Arrow int           `json:"arrow,omitempty"` // the number of its arrow, from 1; 0: it has none
}
