package journal

import "github.com/matter-ops/kms-rotation/kek"

// Next is what a person should do. The steps name an action and the facts of it; each
// edge has a table of how it is done there, by which command or in which console.
type Next struct {
	Do  Action `json:"do,omitempty"`  // "" if Say says it all
	Say string `json:"say,omitempty"` // in words that hold at every edge; "" with an action

	// The facts that actions need.
	Rotation  string `json:"rotation,omitempty"` // id of a rotation
	Plan      string `json:"plan,omitempty"`     // hash of a plan that waits for approval
	Label     string `json:"label,omitempty"`    // of a rotation, by which its window is announced
	KEK       kek.ID `json:"kek,omitempty"`
	Name      string `json:"name,omitempty"`      // of a source or a drill
	Execution string `json:"execution,omitempty"` // ARN of an execution, or its name
}

// String is the action and its facts, for logs and tests.
func (n Next) String() string {
	s := string(n.Do) + n.Say
	for _, fact := range []string{n.Rotation, n.Plan, n.Label, string(n.KEK), n.Name, n.Execution} {
		if fact != "" {
			s += " " + fact
		}
	}
	return s
}

// IsZero reports that there is nothing to do.
func (n Next) IsZero() bool { return n == Next{} }

// Action names what to do, for the tables of the edges.
type Action string

// Actions about a rotation.
const (
	ShowStatus         Action = "show status"
	ShowLock           Action = "show which rotation holds the lock"
	StartAnother       Action = "show status, then start another rotation"
	RotateByHand       Action = "rotate by hand, if a person wants to"
	StartNormal        Action = "start a normal rotation at its own entrance"
	StartEmergency     Action = "start an emergency at its own entrance"
	EndEmergency       Action = "show status, or end the emergency that runs"
	AwaitEmergency     Action = "leave the rows to the emergency"
	AwaitRotation      Action = "show status, or resume the rotation that holds the lock" // Rotation
	CheckThenRedrive   Action = "show status, then redrive the execution"
	CorrectRows        Action = "correct or delete the quarantined rows, then resume" // Rotation
	RestoreOrphans     Action = "restore the orphaned rows, then resume"              // Rotation
	MoveUsers          Action = "move the other users of the KEK, then resume"        // Rotation
	StopWriter         Action = "stop the process that holds the lease, or revoke the lease"
	ListLeases         Action = "list the leases"
	UsePlannedSource   Action = "name a source of preflight's plan"
	NameRequester      Action = "name who asks for the rotation"
	NameIdentity       Action = "name an identity of AWS"
	ShowPlan           Action = "look at the plan that waits"
	AskApprover        Action = "ask another person to approve the plan" // Rotation, Plan
	AnnounceLater      Action = "announce a later window"                // Label
	RotateNow          Action = "rotate"
	AnnounceWindow     Action = "announce the window, then rotate in it"                       // Label
	RunDrill           Action = "run the drill"                                                // Name
	EnableLeftKey      Action = "run doctor, then enable the KMS key of the KEK that was left" // KEK
	RotateAgain        Action = "fix the cause, then rotate again"
	ResumeRotation     Action = "fix the cause, then resume the rotation" // Rotation, Execution: its ARN
	FollowExecution    Action = "nothing, or follow the execution"        // Execution: its name
	ShowPointer        Action = "nothing, or look at the pointer and the KEKs"
	ShowDrill          Action = "nothing, or look until when the drill counts"
	ShowChecks         Action = "look at preflight's checks, fix the cause, then rotate again"
	PrepareWindow      Action = "fix what preflight names before the window"
	JudgePlan          Action = "approve or reject the plan" // Rotation, Plan
	FindCanaryFault    Action = "find out why the canary failed"
	RunGenesis         Action = "run genesis"
	ContinueRotation   Action = "end the pause of the rotation" // Rotation
	MakePointer        Action = "run doctor, or genesis in a new deployment"
	CheckSetBack       Action = "ask doctor whether the control table was set back"
	RunDoctor          Action = "run doctor"
	RetryThenRunDoctor Action = "wait for the retries, then run doctor"
)

// Actions about sources and their rows.
const (
	AddOrRemoveSource Action = "add the source, or remove it with force" // Name
	ListSources       Action = "list the sources"
	AddSource         Action = "add a source"
	CorrectSource     Action = "list the sources, then correct one"
	CorrectNames      Action = "correct the attributes' names of a source"
	RegisterTable     Action = "make the table a source, or remove its mark"
	MoveSourceRows    Action = "move the rows of the source, or remove it with force"    // Name
	FindMissingRows   Action = "ask who deleted the rows, or restore them from a backup" // Rotation
	ShowUnaccounted   Action = "show the items that cannot be accounted for, or adopt rows"
	CompareContext    Action = "compare the encryption context, or show the items that cannot be accounted for"
)

// Actions about the audit chain and the deployment.
const (
	RepairTable           Action = "let doctor make the repairs"
	RestoreTable          Action = "restore the control table from a backup, then run doctor"
	EnableUsedKey         Action = "enable the KMS key of a KEK that was in use"      // KEK
	EnableKey             Action = "find out who changed the KMS key, then enable it" // KEK
	DisableKey            Action = "disable the KMS key of a retired KEK"             // KEK
	ShowAudit             Action = "look at the audit chain, and ask who operates the stack"
	VerifyAudit           Action = "verify the audit chain, as in an incident"
	FindForeignObject     Action = "find out who put the object there"
	FindTableWriter       Action = "find out who else writes the control table, then resume" // Rotation
	AnchorAudit           Action = "anchor the audit chain, then redrive the execution"
	ResumeAnchoring       Action = "find out why the anchor schedule does not run, then anchor"
	ConfigureLog          Action = "name a transparency log"
	CompareLogKey         Action = "compare the log's key and origin with the configured ones"
	NameSuccessor         Action = "name the successor of a frozen log"
	ReplaceLog            Action = "treat it as an incident of the log, and name another"
	CompareSourcePolicies Action = "compare the policies of the table with the sources of the stack"
	DeployAgain           Action = "deploy the stack again"
	DeployTable           Action = "deploy the stack, or name its control table"
	DeployOneVersion      Action = "deploy the stack and its state machines of one version"
	ComparePolicies       Action = "compare the role and the policies with the stack's"
)
