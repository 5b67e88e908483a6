package rotation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// UnmarshalJSON reads what a person types into a console at night. null, "" and {} are
// blank, spaces around a value are ignored, and so is the field Comment that the Step
// Functions console puts into an empty form. Any other unknown field is refused: with a
// misspelt mode a normal rotation would start in an emergency.
func (in *ExecutionInput) UnmarshalJSON(b []byte) error {
	var text string
	switch b = bytes.TrimSpace(b); {
	case len(b) == 0 || bytes.Equal(b, []byte("null")):
		*in = ExecutionInput{}
		return nil
	case json.Unmarshal(b, &text) == nil:
		if strings.TrimSpace(text) != "" {
			return fmt.Errorf(`the input is the text %q; send an object, such as {"mode": "emergency", "reason": "what happened"}`, text)
		}
		*in = ExecutionInput{}
		return nil
	case b[0] != '{':
		return errors.New(`the input is not an object; send {}, or {"mode": "emergency", "reason": "what happened"}`)
	}
	type plain ExecutionInput // without this method
	var out struct {
		plain
		Comment json.RawMessage `json:"Comment"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		return fmt.Errorf("%w; the fields are mode, label, reason, window, resume, drill and requested_by, each a text", err)
	}
	*in = ExecutionInput(out.plain)
	for _, field := range []*string{&in.Mode, &in.Label, &in.Reason, &in.Window, &in.Resume, &in.Drill, &in.RequestedBy} {
		*field = strings.TrimSpace(*field)
	}
	return nil
}
