package source

import "errors"

// What drivers report, for the steps to branch on.
var (
	ErrDenied   = errors.New("AWS denied the call")
	ErrRejected = errors.New("AWS rejected the request")
	ErrNoKey    = errors.New("it is not an item of the table") // it lacks a part of the primary key
	ErrFenced   = errors.New("the fence is not open")
	ErrBusy     = errors.New("another transaction is under way") // nothing was written; worth another try at once
)

// Problem is what is wrong with a place.
type Problem string

// The problems.
const (
	Misconfigured Problem = "misconfigured" // the place or its definition cannot be used
	Unaccounted   Problem = "unaccounted"   // an item cannot be rewrapped as it is; the place can be registered, and its rows adopted
)

// Error is a finding of [Driver.Check] that a person has to correct. The steps turn it into
// an error of their own, which names the source.
type Error struct {
	Problem Problem
	Field   string   // of the definition; "" if no single field is to blame
	Msg     string   // what is wrong
	Next    string   // what to do
	Rows    []string // ids of the first few rows to blame; not in the text, because a row's key may be personal data
	Err     error    // cause; may be nil
}

func (e *Error) Error() string {
	s := e.Msg
	if e.Field != "" {
		s = e.Field + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
