package kek

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Source is one place whose rows a rotation moves, as the control table keeps it. A
// rotation freezes the registered sources when it starts and reads nothing else.
type Source struct {
	Name       string
	Kind       string    // chooses the driver that reads the definition
	Definition string    // JSON object that the driver of Kind reads
	Place      string    // what is registered once: the table's name, or the bucket and prefix
	Generation int       // grows by one with every new definition; what was seen under an older one does not count
	AddedAt    time.Time // UTC
	AddedBy    string    // identity that registered it
}

// Mark is what an application leaves in the control table before it first writes
// envelopes into a table: a table that is marked and is no source was forgotten.
type Mark struct {
	Table  string    // the table's name, without the rest of its ARN
	Holder string    // the process that left it
	SeenAt time.Time // UTC, when it was left or renewed
}

// Settings are what a deployment chooses and a rotation keeps from its start, so that
// a step that runs in another environment cannot do otherwise.
type Settings struct {
	DrainMaxWait time.Duration // how long leases may outlive the switch
	DeleteHold   time.Duration // how long a retired KEK must not be deleted
	FenceShards  int           // fence items of the new KEK
	MaxMints     int           // mint attempts of an emergency
	CanaryRounds int           // known-plaintext roundtrips
	Deep         bool          // confirm and verify unwrap every distinct DEK, not a sample
	Window       string        // HH:MM-HH:MM of the deployment's time zone in which it may start and switch; "" is any time
}

// MaxLease is how long a lease may be at most. One that says it lasts longer has been
// written by a clock that is ahead.
const MaxLease = 10 * time.Minute

var sourceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,254}$`)

// CheckSourceName refuses a name that cannot be part of a table key.
func CheckSourceName(name string) error {
	if !sourceName.MatchString(name) {
		return fmt.Errorf("source name %q: use 1 to 255 letters, digits, _ . and -, starting with a letter or digit", name)
	}
	return nil
}

// Digest names a set of sources, for records and comparisons: hex SHA-256 of their
// names, kinds and definitions in order.
func Digest(sources []Source) string {
	h := sha256.New()
	for _, s := range sources {
		for _, part := range []string{s.Name, s.Kind, s.Definition} {
			fmt.Fprintf(h, "%d:%s", len(part), part)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Forgotten lists the marked tables that none of the sources is.
func Forgotten(marks []Mark, sources []Source) []Mark {
	known := map[string]bool{}
	for _, s := range sources {
		known[s.Place] = true
	}
	var out []Mark
	for _, m := range marks {
		if !known[m.Table] {
			out = append(out, m)
		}
	}
	return out
}

var keyARN = regexp.MustCompile(`^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/([A-Za-z0-9-]{1,128})$`)

// ParseKeyRef reads how a row names its KEK: a key id, or a key ARN as
// GenerateDataKey answers it. arn is "" for a plain id. ok is false for every other
// form, an alias among them: an alias moves, so it says nothing of a row.
func ParseKeyRef(text string) (id ID, arn string, ok bool) {
	if strings.HasPrefix(text, "arn:") { // most rows name an id, and each read of a row comes here
		if m := keyARN.FindStringSubmatch(text); m != nil {
			return ID(m[1]), text, true
		}
	}
	if text == "" || strings.ContainsAny(text, ":/") {
		return "", "", false
	}
	return ID(text), "", true
}
