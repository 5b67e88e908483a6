package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// decodeStrict decodes one JSON value without unknown fields and with nothing after it.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) { // More would overlook a bracket
		return errors.New("more than one JSON value")
	}
	return nil
}

// fields are the names that the objects in a JSON value may have; nil if the value holds
// no object.
type fields map[string]fields

// checkFields refuses what decodeStrict accepts because encoding/json is lenient: null in
// the place of a value, a repeated field, and a field name in another case. The error
// names the field by its path.
func checkFields(b []byte, known fields) error {
	if !json.Valid(b) {
		return nil // strict says why
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber() // any number is a token
	return known.checkValue(d, "")
}

// checkValue checks the next value of d. The JSON is valid, so tokens have no errors.
func (f fields) checkValue(d *json.Decoder, path string) error {
	t, _ := d.Token() // never an error: the value is valid
	switch t {
	case nil:
		return fmt.Errorf("%s: null is not a value", describePath(path))
	case json.Delim('['):
		for i := 0; d.More(); i++ {
			if err := f.checkValue(d, fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		if err := f.checkObject(d, path); err != nil {
			return err
		}
	default:
		return nil
	}
	_, _ = d.Token() // the closing bracket
	return nil
}

// checkObject checks the fields of an object, whose opening brace has been read.
func (f fields) checkObject(d *json.Decoder, path string) error {
	var seen []string
	for d.More() {
		t, _ := d.Token()
		name := fmt.Sprint(t)
		below := name
		if path != "" {
			below = path + "." + name
		}
		inner, ok := f[name]
		switch {
		case !ok:
			return fmt.Errorf("%s: unknown field", below)
		case slices.Contains(seen, name):
			return fmt.Errorf("%s: the field is there twice", below)
		}
		seen = append(seen, name)
		if err := inner.checkValue(d, below); err != nil {
			return err
		}
	}
	return nil
}

func describePath(path string) string {
	if path == "" {
		return "the whole value"
	}
	return path
}
