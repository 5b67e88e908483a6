package trace

import "slices"

// Who makes an effect. The functions are named after their folders.
var (
	environment = []string{Application, Person}
	operator    = []string{Person} // who runs a step at the CLI is one too
	functions   = []string{
		"anchor", "approve", "drain", "dualunwrap", "health", "mint", "notify", "preflight", "retire", "rewrap", "schedule", "switch", "verify",
	}
)

// changes are the changes of the control table, and the functions that make them. A
// person at the CLI may make each.
var changes = map[string][]string{
	"kek_genesis": nil, "kek_registered": nil, "source_added": nil, "source_removed": nil, "mark_removed": nil,
	"rotation_started": {"preflight"}, "emergency_took_over": {"preflight"}, "rotation_resumed": {"preflight"},
	"rows_counted": {"verify"}, "kek_minted": {"mint"}, "rows_rehearsed": {"rewrap"}, "dual_unwrap_passed": {"dualunwrap"},
	"pointer_switched": {"switch"}, "old_kek_sealed": {"drain"}, "rows_rewrapped": {"rewrap"},
	"old_kek_retired": {"retire"}, "rolled_back": {"retire"}, "reminted": {"retire"},
	"kms_rotation_completed": {"verify"}, "reading_restarted": {"verify", "retire", "preflight"},
}

// callers are who makes an effect that is no change.
var callers = map[string][]string{
	Snapshot: operator, Plant: operator, Label: operator, "KMS.Enable": operator,
	"Table.Insert": environment, "Table.Update": environment, "Table.Delete": environment,
	"Store.PutLease": environment, "Store.RenewLease": environment, "Store.DropLease": environment,

	"KMS.Create": {Person, "mint"}, "KMS.Claim": {Person, "mint"}, "KMS.Disable": {Person, "mint", "retire", "verify"},
	"Store.Leases": {Person, "drain", "preflight"}, "Store.Revoke": {Person, "drain"}, "Store.SealFence": {Person, "drain"},
	"Table.Replace":        {Person, "rewrap", "retire"},
	"Store.SaveCheckpoint": {Person, "verify", "rewrap", "retire", "preflight"},
	"Store.Record":         append([]string{Person}, functions...),
	"Vault.Put":            append([]string{Person}, functions...),
	"Store.MarkPublished":  append([]string{Person}, functions...),
	Scan:                   append([]string{Person, Application}, functions...),
	GenerateDataKey:        append([]string{Person, Application}, functions...),
	Decrypt:                append([]string{Person, Application}, functions...),
	ReEncrypt:              append([]string{Person}, functions...),
}

// archived is the type of the record of items that were removed from the control table. The
// model knows them as shut fences and passes that are over: nothing changes in it.
const archived = "control_items_archived"

var passes = []string{"census", "rewrap", "confirm", "verify"}

// refusal is why an event can be in no run of the deployment, whatever came before it;
// "" if it may. What is not understood is refused.
func (r *run) refusal(e Event, i int) string {
	allowed, known := callers[e.Effect]
	if e.Effect == "Store.Apply" {
		var by []string
		if by, known = changes[e.Event]; !known {
			return "no change is called that"
		}
		allowed = append([]string{Person}, by...)
	}
	switch {
	case !known:
		return "no effect is called that"
	case e.Caller == "":
		return "it says nothing of who made the call"
	case !slices.Contains(allowed, e.Caller):
		return e.Caller + " never does this"
	case e.Effect == Snapshot && i > 0:
		return "a snapshot is taken when a recording begins"
	}
	return r.incomplete(e)
}

// incomplete is what an event leaves out, or says that cannot be.
func (r *run) incomplete(e Event) string {
	lacks := func(fields ...string) bool { return slices.Contains(fields, "") }
	_, ourKEK := r.keks[e.KEK]
	switch e.Effect {
	case "Store.Apply":
		switch {
		case e.Seq <= 0:
			return "it has no place in the chain"
		case e.Event == "kek_genesis" && e.Epoch != 1:
			return "the first epoch is 1"
		case e.Event == "kek_registered" && len(e.States) != 1:
			return "it registers one KEK"
		}
	case "Store.Record":
		if _, change := changes[e.Event]; change || lacks(e.Event) || e.Event == "recorded" {
			return "a record of its own has no such type"
		}
		if e.Event == archived && e.Caller != "verify" && e.Caller != Person {
			return e.Caller + " archives nothing"
		}
	case "Store.SaveCheckpoint":
		if lacks(e.Rotation, e.Source) || !slices.Contains(passes, e.Sweep) {
			return "no such pass"
		}
	case "Store.SealFence":
		if !ourKEK || e.Shard < 0 || e.Shard >= r.shards {
			return "nobody knows this KEK, or it has no such shard"
		}
	case "KMS.Create", "KMS.Claim", "KMS.Disable", "KMS.Enable", "Store.Leases":
		if lacks(e.KEK) {
			return "it names no key"
		}
	case "Store.PutLease", "Store.RenewLease", "Store.DropLease", "Store.Revoke":
		if lacks(e.KEK, e.Actor) {
			return "it names no holder or no KEK"
		}
	case GenerateDataKey, Decrypt:
		if lacks(e.KEK, e.Blob, e.DEK) {
			return "it says not what it wraps"
		}
	case ReEncrypt:
		if lacks(e.Old, e.Was, e.KEK, e.Blob, e.DEK) {
			return "it says not what it wraps"
		}
	case Scan:
		if lacks(e.Source) || e.Total < 1 || e.Segment < 0 || e.Segment >= e.Total || slices.ContainsFunc(e.Page, func(s Seen) bool { return s.Row == "" }) {
			return "it is no page of a segment"
		}
	case "Table.Insert", "Table.Update", "Table.Replace", Label, Plant:
		switch {
		case lacks(e.Source, e.Row) || e.Effect != Plant && lacks(e.KEK):
			return "it names no row or no KEK"
		case e.Body != "" && e.BodyDEK == "":
			return "it says not under which DEK its payload opens"
		}
	case "Table.Delete":
		if lacks(e.Source, e.Row) {
			return "it names no row"
		}
	}
	return ""
}
