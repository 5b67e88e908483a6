package source

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/matter-ops/kms-rotation/kek"
)

// Kind is a kind of place, and how its definitions are read.
type Kind struct {
	Name string // of [kek.Source], and the field "kind" of a definition
	// Parse reads a definition as a person writes it, including "kind". It refuses unknown
	// fields, because with a misspelt one rows could be left behind, and names every fault
	// under its JSON field.
	Parse func(definition []byte) (kek.Source, error)
	// Open returns the driver of a registered place. It sends no request.
	Open func(kek.Source) (Driver, error)
}

// Registry holds the kinds of sources that a release supports.
type Registry struct{ kinds []Kind }

// NewRegistry returns the registry of kinds. The first is the kind of a definition that
// names none.
func NewRegistry(kinds ...Kind) *Registry { return &Registry{kinds: kinds} }

// findKind returns the kind of a name; false if there is none.
func (r *Registry) findKind(name string) (Kind, bool) {
	for _, k := range r.kinds {
		if k.Name == name {
			return k, true
		}
	}
	return Kind{}, false
}

// listNames lists the kinds, quoted as format says.
func (r *Registry) listNames(format, separator string) string {
	var out []string
	for _, k := range r.kinds {
		out = append(out, fmt.Sprintf(format, k.Name))
	}
	return strings.Join(out, separator)
}

// Open opens a registered source by the driver of its kind. It refuses a driver
// that does not state the fence of its rows: without one they would be orphaned.
func (r *Registry) Open(def kek.Source) (Driver, error) {
	k, ok := r.findKind(def.Kind)
	if !ok {
		return nil, fmt.Errorf("kind %q is not known to this release; it knows %s", def.Kind, r.listNames("%s", " and "))
	}
	d, err := k.Open(def)
	if err == nil {
		err = checkFencing(d)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Parse reads one definition as a person writes it: a JSON object whose field "kind" says
// which driver reads the rest.
func (r *Registry) Parse(definition []byte) (kek.Source, error) {
	var is struct{ Kind string }
	if err := json.Unmarshal(definition, &is); err != nil {
		return kek.Source{}, fmt.Errorf("is not a JSON object: %w", err)
	}
	if is.Kind == "" {
		is.Kind = r.kinds[0].Name
	}
	k, ok := r.findKind(is.Kind)
	if !ok {
		return kek.Source{}, fmt.Errorf("kind: %q is not known; use %s", is.Kind, r.listNames("%q", " or "))
	}
	return k.Parse(definition)
}
