// Package fault makes chosen AWS calls fail. A fault names which calls it is for,
// which of those it starts with and how many it takes, and what becomes of them.
package fault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"sync"
)

// Mode is what becomes of a call.
type Mode string

// The modes.
const (
	// Throttle answers as the service does when called too often.
	Throttle Mode = "throttle"
	// Error answers with [DefaultCode] and 400, which nobody retries, or with the
	// fault's error code and status.
	Error Mode = "error"
	// DropResponse lets the call take effect and closes the connection unanswered.
	DropResponse Mode = "drop-response"
	// Delay waits before the call is forwarded.
	Delay Mode = "delay"
	// KillFunction kills the process of the calling function; for Lambda's Invoke,
	// of the called one.
	KillFunction Mode = "kill-function"
)

// DefaultCode is the error code of an [Error] that names none.
const DefaultCode = "InjectedFault"

// When is the side of the call's effect on which a fault happens.
type When string

// The sides.
const (
	Before When = "before" // the call has no effect
	After  When = "after"  // the call has taken effect, the caller does not learn it
)

// Fault is a fault, as the control API reads and writes it.
type Fault struct {
	ID        string `json:"id,omitempty"`
	Service   string `json:"service,omitempty"`   // signing name; "" for any
	Operation string `json:"operation,omitempty"` // "" for any
	Function  string `json:"function,omitempty"`  // short name of the caller, of the called one for Invoke; "" for any caller
	Nth       int    `json:"nth"`                 // the first matching call that fails, from 1
	Times     int    `json:"times"`               // how many fail from there
	Mode      Mode   `json:"mode"`
	When      When   `json:"when,omitempty"`       // of error and kill-function
	DelayMS   int    `json:"delay_ms,omitempty"`   // of delay
	ErrorCode string `json:"error_code,omitempty"` // of error
	Status    int    `json:"status,omitempty"`     // of error
	Seen      int    `json:"seen"`                 // matching calls so far
	Fired     int    `json:"fired"`                // calls it has failed
}

// FieldError reports a field that is wrong.
type FieldError struct {
	Field string `json:"field"`
	Msg   string `json:"error"`
}

// Error implements the error interface.
func (e *FieldError) Error() string { return e.Field + ": " + e.Msg }

var unknownField = regexp.MustCompile(`^json: unknown field "(.*)"$`)

// Parse decodes and checks a fault strictly: a misspelt field would be a fault that
// never happens. Its errors are [*FieldError].
func Parse(b []byte) (Fault, error) {
	var f Fault
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		if m := unknownField.FindStringSubmatch(err.Error()); m != nil {
			return f, &FieldError{m[1], "unknown field"}
		}
		var typed *json.UnmarshalTypeError
		if errors.As(err, &typed) {
			return f, &FieldError{typed.Field, "must be of type " + typed.Type.String()}
		}
		return f, &FieldError{"", "not a JSON object: " + err.Error()}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return f, &FieldError{"", "more than one JSON value"}
	}
	return f.withDefaults()
}

// withDefaults fills what may be left out and checks the rest.
func (f Fault) withDefaults() (Fault, error) {
	if f.Nth == 0 {
		f.Nth = 1
	}
	if f.Times == 0 {
		f.Times = 1
	}
	sided := f.Mode == Error || f.Mode == KillFunction
	if sided && f.When == "" {
		f.When = Before
	}
	switch modes := []Mode{Throttle, Error, DropResponse, Delay, KillFunction}; {
	case !slices.Contains(modes, f.Mode):
		return f, &FieldError{"mode", fmt.Sprintf("%q is not one of %q", f.Mode, modes)}
	case f.Nth < 1:
		return f, &FieldError{"nth", "must be 1 or more"}
	case f.Times < 1:
		return f, &FieldError{"times", "must be 1 or more"}
	case f.When != "" && !sided:
		return f, &FieldError{"when", fmt.Sprintf("is not for mode %q", f.Mode)}
	case sided && f.When != Before && f.When != After:
		return f, &FieldError{"when", fmt.Sprintf("%q is not %q or %q", f.When, Before, After)}
	case (f.Mode == Delay) != (f.DelayMS > 0) || f.DelayMS < 0:
		return f, &FieldError{"delay_ms", "must be positive for mode \"delay\" and absent otherwise"}
	case f.Mode != Error && f.ErrorCode != "":
		return f, &FieldError{"error_code", "is for mode \"error\" only"}
	case f.Status != 0 && (f.Mode != Error || f.Status < 400 || f.Status > 599):
		return f, &FieldError{"status", "must be 400 to 599, and is for mode \"error\" only"}
	case f.ID != "":
		return f, &FieldError{"id", "is given by the server"}
	case f.Seen != 0:
		return f, &FieldError{"seen", "is counted by the server"}
	case f.Fired != 0:
		return f, &FieldError{"fired", "is counted by the server"}
	}
	return f, nil
}

func (f *Fault) matches(service, operation, function string) bool {
	return (f.Service == "" || f.Service == service) &&
		(f.Operation == "" || f.Operation == operation) &&
		(f.Function == "" || f.Function == function)
}

// Set holds the faults in force. Its zero value is empty.
type Set struct {
	mu     sync.Mutex
	last   int
	faults []*Fault
}

// Add checks a fault and puts it in force, with counts of zero.
func (s *Set) Add(f Fault) (Fault, error) {
	f, err := f.withDefaults()
	if err != nil {
		return f, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	f.ID = strconv.Itoa(s.last)
	kept := f
	s.faults = append(s.faults, &kept)
	return f, nil
}

// Next counts a call for every fault that it matches and returns the first one
// whose turn it is; a call meets at most one. killable says that the caller is a
// function: no other can be killed.
func (s *Set) Next(service, operation, function string, killable bool) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var fires *Fault
	for _, f := range s.faults {
		if !f.matches(service, operation, function) || f.Mode == KillFunction && !killable {
			continue
		}
		f.Seen++
		if fires == nil && f.Seen >= f.Nth && f.Seen < f.Nth+f.Times {
			fires = f
		}
	}
	if fires == nil {
		return Fault{}, false
	}
	fires.Fired++
	return *fires, true
}

// List returns the faults with their counts.
func (s *Set) List() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Fault, 0, len(s.faults))
	for _, f := range s.faults {
		out = append(out, *f)
	}
	return out
}

// Clear lifts all faults.
func (s *Set) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}
