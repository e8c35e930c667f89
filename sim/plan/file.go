package plan

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
)

// maxFile bounds the size of a plan in a file.
const maxFile = 16 << 20

// Read reads a plan, and checks it. Fields that it does not know are refused: a fault
// that is misspelt must not be a fault less.
func Read(r io.Reader) (*Plan, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("a plan of more than %d MiB", maxFile>>20)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	p := new(Plan)
	if err := d.Decode(p); err != nil {
		return nil, fmt.Errorf("%sthis is not a plan: %w", place(text, err, d.InputOffset()), err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%sthere is more after the plan", place(text, nil, d.InputOffset()))
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	return p, nil
}

// place is the line of an error, as people count.
func place(text []byte, err error, offset int64) string {
	var syntax *json.SyntaxError
	var typed *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &typed):
		offset = typed.Offset
	}
	offset = min(max(0, offset), int64(len(text)))
	return fmt.Sprintf("line %d: ", 1+bytes.Count(text[:offset], []byte("\n")))
}

// ReadFile is [Read] for a file.
func ReadFile(path string) (*Plan, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// Write writes the plan as JSON for people: a line for each node, queue, client and fault.
func (p *Plan) Write(w io.Writer) error {
	var out bytes.Buffer
	if err := writeFields(&out, reflect.ValueOf(p).Elem(), ""); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err := w.Write(out.Bytes())
	return err
}

// WriteFile is [Plan.Write] to a file; where it fails the file is not there.
func (p *Plan) WriteFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err = errors.Join(p.Write(f), f.Close()); err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// writeFields writes a struct with a line for each field, and for each element of a list
// of structs. Mesh is written in the same way, all else on one line.
func writeFields(out *bytes.Buffer, v reflect.Value, indent string) error {
	sep := "{"
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		f := v.Field(i)
		if (options == "omitempty" || options == "omitzero") && f.IsZero() {
			continue
		}
		fmt.Fprintf(out, "%s\n%s  %q: ", sep, indent, name)
		sep = ","
		var err error
		switch {
		case f.Type() == reflect.TypeFor[Mesh]():
			err = writeFields(out, f, indent+"  ")
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct:
			err = writeList(out, f, indent+"  ")
		default:
			err = writeValue(out, f)
		}
		if err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "\n%s}", indent)
	return nil
}

func writeList(out *bytes.Buffer, list reflect.Value, indent string) error {
	sep := "["
	for i := range list.Len() {
		fmt.Fprintf(out, "%s\n%s  ", sep, indent)
		sep = ","
		if err := writeValue(out, list.Index(i)); err != nil {
			return err
		}
	}
	if list.Len() == 0 {
		out.WriteString("[]")
		return nil
	}
	fmt.Fprintf(out, "\n%s]", indent)
	return nil
}

func writeValue(out *bytes.Buffer, v reflect.Value) error {
	text, err := json.Marshal(v.Interface())
	out.Write(text)
	return err
}
