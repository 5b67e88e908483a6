package ddb

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/kek"
)

// The items of the control table by partition key. An item without a natural
// sort key has noSK.
const (
	pkPointer    = "POINTER"
	pkLock       = "LOCK"
	pkKEK        = "KEK#"
	pkFence      = "FENCE#"
	pkRotation   = "ROTATION#"
	pkLease      = "LEASE#"
	pkCheckpoint = "CHECKPOINT#"
	pkRegistry   = "REGISTRY" // counts the changes of sources and historic KEKs
	pkSource     = "SOURCE"   // sk: the source's name
	pkMark       = "MARK"     // sk: the table's name; envelope.Client.Table writes it
	pkAudit      = "AUDIT"
	pkAuditHead  = "AUDIT_HEAD"
	noSK         = "-"
)

const timeFormat = "2006-01-02T15:04:05.000Z"

func kekPK(id kek.ID) string            { return pkKEK + string(id) }
func fencePK(id kek.ID) string          { return pkFence + string(id) }
func fenceSK(shard int) string          { return fmt.Sprintf("%02d", shard) }
func leasePK(id kek.ID) string          { return pkLease + string(id) }
func rotationPK(id string) string       { return pkRotation + id }
func auditSK(seq int64) string          { return fmt.Sprintf("%012d", seq) }
func checkpointSK(n int) string         { return fmt.Sprintf("%03d", n) }
func key(pk, sk string) item            { return item{"pk": str(pk), "sk": str(sk)} }
func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
func num(n int64) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatInt(n, 10)}
}
func blob(b []byte) types.AttributeValue  { return &types.AttributeValueMemberB{Value: b} }
func boolean(b bool) types.AttributeValue { return &types.AttributeValueMemberBOOL{Value: b} }

type (
	item   = map[string]types.AttributeValue
	values map[string]types.AttributeValue
)

// set adds strings and times that are not empty.
func set(i item, pairs ...any) item {
	for n := 0; n < len(pairs); n += 2 {
		name := pairs[n].(string) //nolint:forcetypeassert // a programming error
		switch v := pairs[n+1].(type) {
		case string:
			if v != "" {
				i[name] = str(v)
			}
		case time.Time:
			if !v.IsZero() {
				i[name] = str(v.UTC().Format(timeFormat))
			}
		case int64:
			i[name] = num(v)
		case []byte:
			if len(v) > 0 {
				i[name] = blob(v)
			}
		default:
			panic(fmt.Sprintf("ddb: attribute %s has type %T", name, v))
		}
	}
	return i
}

var placeholder = regexp.MustCompile(`#\w+`)

// expression returns the names and values of an expression in which every
// attribute is written #name, so that no reserved word gets in the way.
func expression(expr string, vals values) (map[string]string, item) {
	names := map[string]string{}
	for _, n := range placeholder.FindAllString(expr, -1) {
		names[n] = n[1:]
	}
	var out item
	if len(vals) > 0 {
		out = make(item, len(vals))
		for n, v := range vals {
			out[":"+n] = v
		}
	}
	return names, out
}

// reader decodes attributes and keeps the first error. An absent attribute is the
// zero value.
type reader struct {
	item item
	err  error
}

func (r *reader) fail(name, want string, got types.AttributeValue) {
	if r.err == nil {
		r.err = fmt.Errorf("attribute %s is %T, not %s", name, got, want)
	}
}

func (r *reader) str(name string) string {
	switch v := r.item[name].(type) {
	case nil:
	case *types.AttributeValueMemberS:
		return v.Value
	default:
		r.fail(name, "a string", v)
	}
	return ""
}

func (r *reader) num(name string) int64 {
	switch v := r.item[name].(type) {
	case nil:
	case *types.AttributeValueMemberN:
		n, err := strconv.ParseInt(v.Value, 10, 64)
		if err != nil && r.err == nil {
			r.err = fmt.Errorf("attribute %s: %w", name, err)
		}
		return n
	default:
		r.fail(name, "a number", v)
	}
	return 0
}

func (r *reader) bytes(name string) []byte {
	switch v := r.item[name].(type) {
	case nil:
	case *types.AttributeValueMemberB:
		return v.Value
	default:
		r.fail(name, "binary", v)
	}
	return nil
}

func (r *reader) bool(name string) bool {
	switch v := r.item[name].(type) {
	case nil:
	case *types.AttributeValueMemberBOOL:
		return v.Value
	default:
		r.fail(name, "a boolean", v)
	}
	return false
}

func (r *reader) strs(name string) []string {
	v, ok := r.item[name].(*types.AttributeValueMemberL)
	if !ok {
		if got := r.item[name]; got != nil {
			r.fail(name, "a list", got)
		}
		return nil
	}
	var out []string
	for _, e := range v.Value {
		s, ok := e.(*types.AttributeValueMemberS)
		if !ok {
			r.fail(name, "a list of strings", e)
			return nil
		}
		out = append(out, s.Value)
	}
	return out
}

func (r *reader) time(name string) time.Time {
	s := r.str(name)
	if s == "" {
		return time.Time{}
	}
	t, err := time.Parse(timeFormat, s)
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("attribute %s: %w", name, err)
	}
	return t
}

func decodeAll[T any](items []item, decode func(item) (T, error), order func(a, b T) int) ([]T, error) {
	out := make([]T, 0, len(items))
	for _, i := range items {
		v, err := decode(i)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, order)
	return out, nil
}

// later orders by time, then by id.
func later(a, b time.Time, x, y string) int {
	if c := a.Compare(b); c != 0 {
		return c
	}
	return cmp.Compare(x, y)
}
