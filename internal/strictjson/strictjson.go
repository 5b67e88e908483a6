// Package strictjson decodes JSON that a person wrote. encoding/json is lenient: it would
// silently ignore a misspelt field.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Unmarshal decodes one JSON value into v. It refuses what encoding/json accepts: unknown
// fields, field names in another case, repeated fields, and text after the value. The
// fields of v must not have the option omitempty: unknown fields are found by encoding v
// again.
func Unmarshal(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := checkNames(d); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	if err := json.Unmarshal(data, v); err != nil {
		return err
	}
	again, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var given, known any
	if err := errors.Join(json.Unmarshal(data, &given), json.Unmarshal(again, &known)); err != nil {
		return err
	}
	return checkKnown(given, known)
}

// checkNames reads one value and refuses an object in which a name comes twice.
func checkNames(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			name := fmt.Sprint(t)
			if seen[name] {
				return fmt.Errorf("field %q is there twice", name)
			}
			seen[name] = true
		}
		if err := checkNames(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// checkKnown refuses a field that is not in the value when that is encoded again.
func checkKnown(given, known any) error {
	in, ok := given.(map[string]any)
	if !ok {
		return nil
	}
	out, _ := known.(map[string]any)
	for name, v := range in {
		k, ok := out[name]
		if !ok {
			return fmt.Errorf("field %q is unknown", name)
		}
		if err := checkKnown(v, k); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
