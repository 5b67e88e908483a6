package localaws

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	ddbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	awsiam "github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/matter-ops/kms-rotation/test/localaws/access"
	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/localaws/iam"
	"github.com/matter-ops/kms-rotation/test/localaws/lambdahost"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

// statesAccessKey is the access key with which moto's Step Functions calls Lambda.
const statesAccessKey = "ak"

// role is a role of the stack with the policies it has.
type role struct {
	session  string // ARN of the assumed role, for messages
	mfa      bool   // a person's session that began with MFA
	policies []iam.Policy
}

// permissions hold functions and state machine to their roles' policies, and
// everybody to the denials of bucket policies and to the policies of KMS keys.
type permissions struct {
	reader  access.Reader
	keys    *resolver
	roles   map[string]role // by name of the function
	people  sync.Map        // role by access key, of [Stack.ConfigWith]
	states  role            // of the state machine
	buckets map[string][]iam.Policy
}

// principal returns the role that a caller has assumed; the operator has none and
// may do what no bucket policy denies.
func (p *permissions) principal(c wire.Call, function lambdahost.Function) (role, bool) {
	if c.AccessKey == statesAccessKey {
		return p.states, p.states.session != ""
	}
	if r, ok := p.people.Load(c.AccessKey); ok {
		return r.(role), true
	}
	r, ok := p.roles[function.Name]
	return r, ok
}

// check returns the refusal of a call, or nil.
func (p *permissions) check(r *http.Request, c wire.Call, function lambdahost.Function) *wire.Error {
	who, restricted := p.principal(c, function)
	if !restricted && c.Service != "s3" && c.Service != "kms" {
		return nil
	}
	accesses, err := p.reader.Of(r, c)
	if err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: "ValidationException", Message: "authorise the call: " + err.Error()}
	}
	if c.Service == "kms" && c.Operation == "CreateKey" {
		if e := p.checkNewPolicy(r, who, restricted); e != nil {
			return e
		}
	}
	for _, a := range accesses {
		if who.mfa {
			a.Context["aws:multifactorauthpresent"] = []string{"true"}
		}
		if c.Service == "kms" {
			if why, err := p.refusalByKey(r.Context(), a); err != nil {
				return &wire.Error{Status: http.StatusBadRequest, Code: "ValidationException", Message: "authorise the call: " + err.Error()}
			} else if why != "" {
				return c.Denied(fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s %s",
					cmp.Or(who.session, "the operator"), a.Action, a.Resource, why))
			}
		}
		if why := p.refusal(who, restricted, c.Bucket, a); why != "" {
			// AWS does not tell the condition keys; here they spare a search.
			return c.Denied(fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s %s %v",
				cmp.Or(who.session, "the operator"), a.Action, a.Resource, why, a.Context))
		}
	}
	return nil
}

// refusal says why an access is refused, "" if it is not.
func (p *permissions) refusal(who role, restricted bool, bucket string, a iam.Access) string {
	if a.Action == "sts:GetCallerIdentity" { // takes no permission, and no policy denies it (STS API reference)
		return ""
	}
	if d, by := iam.Decide(p.buckets[bucket], a); d == iam.Denied {
		return "with an explicit deny in a resource-based policy: " + by
	}
	if !restricted {
		return ""
	}
	switch d, by := iam.Decide(who.policies, a); d {
	case iam.Denied:
		return "with an explicit deny in an identity-based policy: " + by
	case iam.Silent:
		return "because no identity-based policy allows the " + a.Action + " action"
	default:
		return ""
	}
}

// refusalByKey says why the policy of a key refuses an access, "" if it does not. Every
// key has one, and what it does not let the account's IAM policies grant, nobody may do.
func (p *permissions) refusalByKey(ctx context.Context, a iam.Access) (string, error) {
	if !strings.Contains(a.Resource, ":key/") {
		return "", nil
	}
	policy, ok, err := p.keys.policy(ctx, a.Resource)
	if err != nil || !ok {
		return "", err
	}
	switch d, by := iam.Decide([]iam.Policy{policy}, a); d {
	case iam.Denied:
		return "with an explicit deny in a resource-based policy: " + by, nil
	case iam.Silent:
		return "because no resource-based policy allows the " + a.Action + " action", nil
	default:
		return "", nil
	}
}

// checkNewPolicy is the lockout safety check of CreateKey: the caller must be able to
// change the policy that it gives the key. That the caller's IAM policies count is what
// users report; AWS's documentation does not say.
func (p *permissions) checkNewPolicy(r *http.Request, who role, restricted bool) *wire.Error {
	body, err := wire.Body(r, maxPolicy)
	if err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: "ValidationException", Message: err.Error()}
	}
	var in struct {
		Policy                         string
		BypassPolicyLockoutSafetyCheck bool
	}
	if err := json.Unmarshal(body, &in); err != nil || in.Policy == "" || in.BypassPolicyLockoutSafetyCheck {
		return nil
	}
	change := iam.Access{
		Action: "kms:PutKeyPolicy", Resource: "arn:aws:kms:" + p.reader.Region + ":" + backend.Account + ":key/new", Context: map[string][]string{},
	}
	policy, err := keyPolicy("new", in.Policy)
	if err == nil {
		d, _ := iam.Decide([]iam.Policy{policy}, change)
		mine := iam.Allowed
		if restricted {
			mine, _ = iam.Decide(who.policies, change)
		}
		if d == iam.Allowed && mine == iam.Allowed {
			return nil
		}
	}
	return &wire.Error{
		Status: http.StatusBadRequest, Code: "MalformedPolicyDocumentException",
		Message: "The new key policy will not allow you to update the key policy in the future.",
	}
}

const maxPolicy = 1 << 20 // of a CreateKey request

// keyPolicy reads what a key's policy says to the account.
func keyPolicy(name, document string) (iam.Policy, error) {
	parsed, err := iam.Parse("policy of key "+name, []byte(document))
	if err != nil {
		return parsed, err
	}
	return iam.OfAccount(parsed, backend.Account)
}

// changesKeys reports whether a call may change which key an id names, its tags or its
// policy.
func changesKeys(c wire.Call) bool {
	return c.Service == "kms" && (strings.HasSuffix(c.Operation, "Resource") || strings.HasSuffix(c.Operation, "Alias") || c.Operation == "PutKeyPolicy")
}

// forgetKeys forgets what is known of keys, now and when the function it returns is
// called.
func (p *permissions) forgetKeys() func() {
	p.keys.forget()
	return p.keys.forget
}

// may reports whether a caller may do something else with the object of its call.
func (p *permissions) may(r *http.Request, c wire.Call, function lambdahost.Function, operation string) bool {
	if operation == "HeadBucket" {
		c.Key = ""
	}
	c.Operation = operation
	return p.check(r, c, function) == nil
}

// loadPermissions reads what the stack's roles and buckets have, as CloudFormation
// has put it together.
func (d *deployment) loadPermissions(ctx context.Context) (*permissions, error) {
	keys := &resolver{dynamo: dynamodb.NewFromConfig(d.dynamo), kms: kms.NewFromConfig(d.moto)}
	p := &permissions{
		keys:   keys,
		reader: access.Reader{Region: d.region, Account: backend.Account, Now: time.Now, Resolver: keys},
		roles:  map[string]role{}, buckets: d.bucketPolicies,
	}
	for _, f := range d.host.Functions() {
		r, err := d.role(ctx, f.Role, f.Name)
		if err != nil {
			return nil, err
		}
		p.roles[f.Name] = r
	}
	if d.stateMachineRole != "" {
		r, err := d.role(ctx, d.stateMachineRole, "states")
		if err != nil {
			return nil, err
		}
		p.states = r
	}
	return p, nil
}

// completeRole attaches the managed policies that a role names, which moto's
// CloudFormation does not, and keeps its inline ones, which moto returns as Python
// prints them.
func completeRole(ctx context.Context, d *deployment, e extra) error {
	var p struct {
		ManagedPolicyArns []string
		Policies          []struct {
			PolicyName     string
			PolicyDocument json.RawMessage
		}
	}
	if err := fill(e.properties, d.outputs, &p); err != nil {
		return err
	}
	if d.inline == nil {
		d.inline = map[string][]iam.Policy{}
	}
	name := d.physical[e.logical]
	for _, policy := range p.Policies {
		parsed, err := iam.Parse(policy.PolicyName, policy.PolicyDocument)
		if err != nil {
			return err
		}
		d.inline[name] = append(d.inline[name], parsed)
	}
	client := awsiam.NewFromConfig(d.moto)
	for _, arn := range p.ManagedPolicyArns {
		if _, err := client.AttachRolePolicy(ctx, &awsiam.AttachRolePolicyInput{RoleName: &name, PolicyArn: &arn}); err != nil {
			return err
		}
	}
	return nil
}

// role reads the managed policies of a role, and adds its inline ones.
func (d *deployment) role(ctx context.Context, arn, session string) (role, error) {
	name := arn[strings.LastIndex(arn, "/")+1:]
	out := role{
		session:  fmt.Sprintf("arn:aws:sts::%s:assumed-role/%s/%s", backend.Account, name, session),
		policies: slices.Clone(d.inline[name]),
	}
	client := awsiam.NewFromConfig(d.moto)
	attached := awsiam.NewListAttachedRolePoliciesPaginator(client, &awsiam.ListAttachedRolePoliciesInput{RoleName: &name})
	for attached.HasMorePages() {
		page, err := attached.NextPage(ctx)
		if err != nil {
			return out, err
		}
		for _, a := range page.AttachedPolicies {
			parsed, err := managedPolicy(ctx, client, aws.ToString(a.PolicyArn))
			if err != nil {
				return out, err
			}
			out.policies = append(out.policies, parsed)
		}
	}
	return out, nil
}

func managedPolicy(ctx context.Context, client *awsiam.Client, arn string) (iam.Policy, error) {
	p, err := client.GetPolicy(ctx, &awsiam.GetPolicyInput{PolicyArn: &arn})
	if err != nil {
		return iam.Policy{}, err
	}
	v, err := client.GetPolicyVersion(ctx, &awsiam.GetPolicyVersionInput{PolicyArn: &arn, VersionId: p.Policy.DefaultVersionId})
	if err != nil {
		return iam.Policy{}, err
	}
	text, err := url.QueryUnescape(aws.ToString(v.PolicyVersion.Document))
	if err != nil {
		return iam.Policy{}, err
	}
	return iam.Parse(aws.ToString(p.Policy.PolicyName), []byte(text))
}

// ConfigWith returns a configuration of the SDK for a person who has these managed policies of
// the stack, by their ARNs, and no other permission.
func (s *Stack) ConfigWith(ctx context.Context, policies ...string) (aws.Config, error) {
	return s.configOf(ctx, role{session: "arn:aws:iam::" + backend.Account + ":user/"}, policies)
}

// ConfigWithMFA is ConfigWith for a session that began with MFA.
func (s *Stack) ConfigWithMFA(ctx context.Context, policies ...string) (aws.Config, error) {
	return s.configOf(ctx, role{session: "arn:aws:iam::" + backend.Account + ":user/MFA", mfa: true}, policies)
}

func (s *Stack) configOf(ctx context.Context, who role, policies []string) (aws.Config, error) {
	cfg := s.AWSConfig()
	for _, policy := range policies {
		parsed, err := managedPolicy(ctx, awsiam.NewFromConfig(s.config(s.moto.URL)), policy)
		if err != nil {
			return cfg, fmt.Errorf("read policy %s: %w", policy, err)
		}
		who.policies = append(who.policies, parsed)
		who.session += parsed.Name
	}
	key := "PERSON" + strings.ToUpper(who.session[strings.LastIndexByte(who.session, '/')+1:])
	s.proxy.access.Load().people.Store(key, who)
	cfg.Credentials = credentials.NewStaticCredentialsProvider(key, backend.Secret, "")
	return cfg, nil
}

// keepBucketPolicy keeps the denials of a bucket's policy for the proxy: moto's
// own evaluation does not know conditions.
func keepBucketPolicy(_ context.Context, d *deployment, e extra) error {
	var p struct {
		Bucket         string
		PolicyDocument json.RawMessage
	}
	if err := fill(e.properties, d.outputs, &p); err != nil {
		return err
	}
	parsed, err := iam.Parse(e.logical, p.PolicyDocument)
	if err != nil {
		return err
	}
	if parsed, err = iam.DenialsOnly(parsed); err != nil {
		return err
	}
	if d.bucketPolicies == nil {
		d.bucketPolicies = map[string][]iam.Policy{}
	}
	d.bucketPolicies[p.Bucket] = append(d.bucketPolicies[p.Bucket], parsed)
	return nil
}

// resolver asks the servers about tables and keys, and remembers what it learns
// until somebody changes keys or tags.
type resolver struct {
	dynamo *dynamodb.Client
	kms    *kms.Client

	mu       sync.Mutex
	hashes   map[string]string
	keys     map[string]access.Key
	policies map[string]iam.Policy // by ARN of the key
	age      int                   // how often keys were forgotten
}

// HashKey implements [access.Resolver].
func (r *resolver) HashKey(ctx context.Context, table string) (string, error) {
	r.mu.Lock()
	hash, ok := r.hashes[table]
	r.mu.Unlock()
	if ok {
		return hash, nil
	}
	out, err := r.dynamo.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &table})
	var gone *ddbtypes.ResourceNotFoundException
	if errors.As(err, &gone) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, k := range out.Table.KeySchema {
		if k.KeyType == ddbtypes.KeyTypeHash {
			hash = aws.ToString(k.AttributeName)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hashes == nil {
		r.hashes = map[string]string{}
	}
	r.hashes[table] = hash
	return hash, nil
}

// Key implements [access.Resolver].
func (r *resolver) Key(ctx context.Context, id string) (access.Key, error) {
	r.mu.Lock()
	key, ok := r.keys[id]
	age := r.age
	r.mu.Unlock()
	if ok || id == "" {
		return key, nil
	}
	out, err := r.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id})
	var gone *kmstypes.NotFoundException
	if errors.As(err, &gone) {
		return key, nil
	}
	if err != nil {
		return key, err
	}
	key = access.Key{ARN: aws.ToString(out.KeyMetadata.Arn), Tags: map[string]string{}}
	pages := kms.NewListResourceTagsPaginator(r.kms, &kms.ListResourceTagsInput{KeyId: out.KeyMetadata.KeyId})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return key, err
		}
		for _, t := range page.Tags {
			key.Tags[aws.ToString(t.TagKey)] = aws.ToString(t.TagValue)
		}
	}
	aliases := kms.NewListAliasesPaginator(r.kms, &kms.ListAliasesInput{KeyId: out.KeyMetadata.KeyId})
	for aliases.HasMorePages() {
		page, err := aliases.NextPage(ctx)
		if err != nil {
			return key, err
		}
		for _, a := range page.Aliases {
			key.Aliases = append(key.Aliases, aws.ToString(a.AliasName))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if age == r.age {
		if r.keys == nil {
			r.keys = map[string]access.Key{}
		}
		r.keys[id] = key
	}
	return key, nil
}

// policy returns what the policy of a key says to the account, and whether there is
// such a key.
func (r *resolver) policy(ctx context.Context, arn string) (iam.Policy, bool, error) {
	r.mu.Lock()
	policy, ok := r.policies[arn]
	age := r.age
	r.mu.Unlock()
	if ok {
		return policy, true, nil
	}
	name := arn[strings.LastIndex(arn, "/")+1:]
	out, err := r.kms.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: &name, PolicyName: aws.String("default")})
	var gone *kmstypes.NotFoundException
	if errors.As(err, &gone) {
		return policy, false, nil
	}
	if err != nil {
		return policy, false, err
	}
	if policy, err = keyPolicy(name, aws.ToString(out.Policy)); err != nil {
		return policy, false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if age == r.age {
		if r.policies == nil {
			r.policies = map[string]iam.Policy{}
		}
		r.policies[arn] = policy
	}
	return policy, true, nil
}

// forget forgets keys, before and after a call that may change one.
func (r *resolver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.keys)
	clear(r.policies)
	r.age++
}
