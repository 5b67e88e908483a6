package awskms_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	tagging "github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
)

// double answers for KMS what it is told to, without a wire.
type double struct {
	*kms.Client // of operations that no test here calls

	fail     map[string]error // by operation
	keys     map[string]*types.KeyMetadata
	pages    []*resourcegroupstaggingapi.GetResourcesOutput
	sign     *kms.SignInput
	create   *kms.CreateKeyInput
	requests []string
	options  []func(*kms.Options) // of CreateAlias
}

func (d *double) called(op string) error {
	d.requests = append(d.requests, op)
	return d.fail[op]
}

func (d *double) CreateKey(_ context.Context, in *kms.CreateKeyInput, _ ...func(*kms.Options)) (*kms.CreateKeyOutput, error) {
	d.create = in
	return &kms.CreateKeyOutput{KeyMetadata: d.keys["new"]}, d.called("CreateKey")
}

func (d *double) CreateAlias(_ context.Context, _ *kms.CreateAliasInput, o ...func(*kms.Options)) (*kms.CreateAliasOutput, error) {
	d.options = o
	return nil, d.called("CreateAlias")
}

func (d *double) DescribeKey(_ context.Context, in *kms.DescribeKeyInput, _ ...func(*kms.Options)) (*kms.DescribeKeyOutput, error) {
	return &kms.DescribeKeyOutput{KeyMetadata: d.keys[*in.KeyId]}, d.called("DescribeKey")
}

func (d *double) DisableKey(context.Context, *kms.DisableKeyInput, ...func(*kms.Options)) (*kms.DisableKeyOutput, error) {
	return nil, d.called("DisableKey")
}

func (d *double) GetKeyPolicy(context.Context, *kms.GetKeyPolicyInput, ...func(*kms.Options)) (*kms.GetKeyPolicyOutput, error) {
	return &kms.GetKeyPolicyOutput{Policy: aws.String(`{"Statement":[]}`)}, d.called("GetKeyPolicy")
}

func (d *double) GetPublicKey(context.Context, *kms.GetPublicKeyInput, ...func(*kms.Options)) (*kms.GetPublicKeyOutput, error) {
	return &kms.GetPublicKeyOutput{PublicKey: []byte("key")}, d.called("GetPublicKey")
}

func (d *double) Sign(_ context.Context, in *kms.SignInput, _ ...func(*kms.Options)) (*kms.SignOutput, error) {
	d.sign = in
	return &kms.SignOutput{Signature: []byte("signature")}, d.called("Sign")
}

func (d *double) Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	return &kms.DecryptOutput{Plaintext: []byte("dek"), KeyId: aws.String("arn:aws:kms:eu-central-1:123456789012:key/k")}, d.called("Decrypt")
}

func (d *double) ReEncrypt(context.Context, *kms.ReEncryptInput, ...func(*kms.Options)) (*kms.ReEncryptOutput, error) {
	return &kms.ReEncryptOutput{CiphertextBlob: []byte("blob")}, d.called("ReEncrypt")
}

func (d *double) GetResources(_ context.Context, in *resourcegroupstaggingapi.GetResourcesInput, _ ...func(*resourcegroupstaggingapi.Options)) (*resourcegroupstaggingapi.GetResourcesOutput, error) {
	n := 0
	if in.PaginationToken != nil {
		n = int((*in.PaginationToken)[0] - '0')
	}
	if err := d.called("GetResources"); err != nil {
		return nil, err
	}
	return d.pages[n], nil
}

func refused(code string) error {
	return &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: &http.Response{StatusCode: http.StatusBadRequest}}, Err: &smithy.GenericAPIError{Code: code},
	}
}

func doubled() (*double, *awskms.Admin) {
	d := &double{fail: map[string]error{}, keys: map[string]*types.KeyMetadata{}}
	return d, awskms.NewAdmin(d, d, "stack", "table")
}

// TestKeys: what KMS says of a key, and whether rows can be wrapped under it.
func TestKeys(t *testing.T) {
	const arn = "arn:aws:kms:eu-central-1:123456789012:key/k"
	metadata := func(change func(*types.KeyMetadata)) *types.KeyMetadata {
		m := &types.KeyMetadata{
			KeyId: aws.String("k"), Arn: aws.String(arn), KeyState: types.KeyStateEnabled,
			KeySpec: types.KeySpecSymmetricDefault, KeyUsage: types.KeyUsageTypeEncryptDecrypt,
		}
		change(m)
		return m
	}
	state := func(s types.KeyState) *types.KeyMetadata {
		return metadata(func(m *types.KeyMetadata) { m.KeyState = s })
	}
	for name, c := range map[string]struct {
		says *types.KeyMetadata
		want keyring.Key
	}{
		"enabled":         {state("Enabled"), keyring.Key{State: "Enabled", Enabled: true, Usable: true}},
		"disabled":        {state("Disabled"), keyring.Key{State: "Disabled", Usable: true}},
		"updating":        {state("Updating"), keyring.Key{State: "Updating", Usable: true}},
		"creating":        {state("Creating"), keyring.Key{State: "Creating"}},
		"deleted soon":    {state("PendingDeletion"), keyring.Key{State: "PendingDeletion"}},
		"imported":        {state("PendingImport"), keyring.Key{State: "PendingImport"}},
		"a replica's end": {state("PendingReplicaDeletion"), keyring.Key{State: "PendingReplicaDeletion"}},
		"unavailable":     {state("Unavailable"), keyring.Key{State: "Unavailable"}},
		"multi-Region": {
			metadata(func(m *types.KeyMetadata) { m.MultiRegion = aws.Bool(true) }), keyring.Key{State: "Enabled", Enabled: true, Usable: true, Multi: true},
		},
		"another spec":  {metadata(func(m *types.KeyMetadata) { m.KeySpec = "SM2" }), keyring.Key{State: "Enabled", Enabled: true}},
		"another usage": {metadata(func(m *types.KeyMetadata) { m.KeyUsage = "SIGN_VERIFY" }), keyring.Key{State: "Enabled", Enabled: true}},
	} {
		d, admin := doubled()
		d.keys["k"], d.keys["new"] = c.says, c.says
		c.want.ID, c.want.ARN = "k", arn
		got, err := admin.Describe(t.Context(), "k")
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		if got, err := admin.Create(t.Context(), "r", 1, "l", old); err != nil || got != c.want {
			t.Errorf("%s, created: %v, %v", name, got, err)
		}
	}
	for name, says := range map[string]*types.KeyMetadata{"nothing": nil, "no id": {}} {
		d, admin := doubled()
		d.keys["k"], d.keys["new"] = says, says
		if k, err := admin.Describe(t.Context(), "k"); err == nil || k != (keyring.Key{}) {
			t.Errorf("%s: %v, %v", name, k, err)
		}
		if k, err := admin.Create(t.Context(), "r", 1, "l", old); err == nil || k != (keyring.Key{}) {
			t.Errorf("%s, created: %v, %v", name, k, err)
		}
	}
}

// TestClaims: who owns the alias of an attempt, and what is not known of it.
func TestClaims(t *testing.T) {
	taken := &types.AlreadyExistsException{}
	const alias = "alias/matter/kek/stack/0d4fc4a7/r/2" // of the table "table"
	for name, c := range map[string]struct {
		id         kek.ID
		make, look error
		want       kek.ID
		wantErr    error // nil: none; errAny: one that means nothing to the steps
		requests   []string
	}{
		"free":               {"mine", nil, nil, "mine", nil, []string{"CreateAlias"}},
		"taken":              {"mine", taken, nil, "theirs", nil, []string{"CreateAlias", "DescribeKey"}},
		"denied":             {"mine", refused("AccessDeniedException"), nil, "", journal.ErrDenied, slices.Repeat([]string{"CreateAlias"}, 6)},
		"fails":              {"mine", refused("KMSInternalException"), nil, "", errAny, []string{"CreateAlias"}},
		"taken, not seen":    {"mine", taken, refused("NotFoundException"), "", errAny, []string{"CreateAlias", "DescribeKey"}},
		"taken, not told":    {"mine", taken, refused("AccessDeniedException"), "", journal.ErrDenied, []string{"CreateAlias", "DescribeKey"}},
		"asked":              {"", nil, nil, "theirs", nil, []string{"DescribeKey"}},
		"asked, nobody":      {"", nil, refused("NotFoundException"), "", nil, []string{"DescribeKey"}},
		"asked, not allowed": {"", nil, refused("AccessDeniedException"), "", journal.ErrDenied, []string{"DescribeKey"}},
	} {
		synctest.Test(t, func(t *testing.T) { // a denial is waited for
			d, admin := doubled()
			d.fail["CreateAlias"], d.fail["DescribeKey"] = c.make, c.look
			d.keys[alias] = &types.KeyMetadata{KeyId: aws.String("theirs")}
			got, err := admin.Claim(t.Context(), "r", 2, c.id)
			if got != c.want || !means(err, c.wantErr) || !slices.Equal(d.requests, c.requests) {
				t.Errorf("%s: %q, %v after %v, want %q, %v", name, got, err, d.requests, c.want, c.wantErr)
			}
			if err != nil && !strings.Contains(err.Error(), alias) {
				t.Errorf("%s: %v does not name the alias", name, err)
			}
		})
	}
}

var errAny = errors.New("any")

// means reports whether an error is the verdict want; errAny is none of them.
func means(err, want error) bool {
	if want == nil || err == nil {
		return want == nil && err == nil
	}
	for _, v := range []error{journal.ErrNoKey, journal.ErrKeyDisabled, journal.ErrUnwrap, journal.ErrDenied} {
		if errors.Is(err, v) != (v == want) { //nolint:errorlint // both are the verdicts themselves
			return false
		}
	}
	return true
}

// TestDisables: only a key that is to be deleted is as good as disabled.
func TestDisables(t *testing.T) {
	inState := refused("KMSInvalidStateException")
	inState = &types.KMSInvalidStateException{Message: aws.String(inState.Error())}
	for name, c := range map[string]struct {
		disable, look error
		state         types.KeyState
		want          error
		asks          bool
	}{
		"done":                    {nil, nil, "Enabled", nil, false},
		"to be deleted":           {inState, nil, "PendingDeletion", nil, true},
		"updating":                {inState, nil, "Updating", journal.ErrKeyDisabled, true},
		"in a state not told":     {inState, refused("AccessDeniedException"), "PendingDeletion", journal.ErrKeyDisabled, true},
		"denied, to be deleted":   {refused("AccessDeniedException"), nil, "PendingDeletion", journal.ErrDenied, false},
		"gone":                    {refused("NotFoundException"), nil, "PendingDeletion", journal.ErrNoKey, false},
		"an error, to be deleted": {refused("KMSInternalException"), nil, "PendingDeletion", errAny, false},
	} {
		d, admin := doubled()
		d.fail["DisableKey"], d.fail["DescribeKey"] = c.disable, c.look
		d.keys["k"] = &types.KeyMetadata{KeyId: aws.String("k"), KeyState: c.state}
		err := admin.Disable(t.Context(), "k")
		if !means(err, c.want) || slices.Contains(d.requests, "DescribeKey") != c.asks || err != nil && !strings.Contains(err.Error(), "DisableKey k") {
			t.Errorf("%s: %v after %v, want %v", name, err, d.requests, c.want)
		}
	}
}

// TestTaggedPages: the keys of a rotation are listed to the end, over an empty page,
// and what is none is told.
func TestTaggedPages(t *testing.T) {
	page := func(next string, arns ...string) *resourcegroupstaggingapi.GetResourcesOutput {
		out := &resourcegroupstaggingapi.GetResourcesOutput{PaginationToken: &next}
		for _, a := range arns {
			out.ResourceTagMappingList = append(out.ResourceTagMappingList, tagging.ResourceTagMapping{ResourceARN: &a})
		}
		return out
	}
	const arn = "arn:aws:kms:eu-central-1:123456789012:key/"
	d, admin := doubled()
	for _, id := range []string{"a", "b", "c"} {
		d.keys[id] = &types.KeyMetadata{KeyId: &id, Description: aws.String("KEK of stack, Q2 2026 (rotation r, attempt 1, table 0d4fc4a7)")}
	}
	d.pages = []*resourcegroupstaggingapi.GetResourcesOutput{page("1", arn+"a", arn+"b"), page("2"), page("", arn+"c")}
	if ids, err := admin.Tagged(t.Context(), "r"); err != nil || !slices.Equal(ids, []kek.ID{"a", "b", "c"}) {
		t.Errorf("%v, %v", ids, err)
	}
	d.pages[2] = page("", "arn:aws:s3:::bucket")
	if ids, err := admin.Tagged(t.Context(), "r"); err == nil || ids != nil || !strings.Contains(err.Error(), "arn:aws:s3:::bucket") {
		t.Errorf("another resource: %v, %v", ids, err)
	}
	d.fail["GetResources"] = refused("AccessDeniedException")
	if ids, err := admin.Tagged(t.Context(), "r"); !errors.Is(err, journal.ErrDenied) || ids != nil || !strings.Contains(err.Error(), "GetResources") {
		t.Errorf("denied: %v, %v", ids, err)
	}
}

// TestOurs: of the keys that carry a rotation's tags those count whose description says that
// they were made for it, by this stack in this life.
func TestOurs(t *testing.T) {
	const good = "KEK of stack, l (rotation r, attempt 1, table 0d4fc4a7)"
	for name, c := range map[string]struct {
		says *types.KeyMetadata
		fail error
		want []kek.ID
		err  error
	}{
		"made for it":           {&types.KeyMetadata{KeyId: aws.String("k"), Description: aws.String(good)}, nil, []kek.ID{"k"}, nil},
		"for another rotation":  {&types.KeyMetadata{KeyId: aws.String("k"), Description: aws.String(strings.Replace(good, "rotation r,", "rotation q,", 1))}, nil, nil, nil},
		"by another stack":      {&types.KeyMetadata{KeyId: aws.String("k"), Description: aws.String(strings.Replace(good, "of stack", "of stick", 1))}, nil, nil, nil},
		"in another life":       {&types.KeyMetadata{KeyId: aws.String("k"), Description: aws.String(strings.Replace(good, "0d4fc4a7", "1a2b3c4d", 1))}, nil, nil, nil},
		"without a description": {&types.KeyMetadata{KeyId: aws.String("k")}, nil, nil, nil},
		"nothing known":         {nil, nil, nil, nil},
		"gone":                  {nil, refusal{&types.NotFoundException{}}, nil, nil},
		"denied":                {nil, refused("AccessDeniedException"), nil, journal.ErrDenied},
	} {
		d, admin := doubled()
		d.keys["k"] = c.says
		d.pages = []*resourcegroupstaggingapi.GetResourcesOutput{{ResourceTagMappingList: []tagging.ResourceTagMapping{{ResourceARN: aws.String("arn:aws:kms:r:1:key/k")}}}}
		d.fail["DescribeKey"] = c.fail
		if ids, err := admin.Tagged(t.Context(), "r"); !slices.Equal(ids, c.want) || !means(err, c.err) {
			t.Errorf("%s: %v, %v", name, ids, err)
		}
	}
}

// refusal is an error of the SDK's own type.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// TestCreateFails: a key that was not made is none.
func TestCreateFails(t *testing.T) {
	d, admin := doubled()
	d.fail["CreateKey"] = refused("AccessDeniedException")
	d.keys["new"] = &types.KeyMetadata{KeyId: aws.String("k")}
	if k, err := admin.Create(t.Context(), "r", 1, "l", old); !errors.Is(err, journal.ErrDenied) || k != (keyring.Key{}) || !strings.Contains(err.Error(), "CreateKey") {
		t.Errorf("%v, %v", k, err)
	}
}

// TestSignerAnswers: KMS is given the message, not a digest of it, and what it refuses
// is neither a signature nor a key.
func TestSignerAnswers(t *testing.T) {
	d, _ := doubled()
	s := awskms.NewSigner(d, "alias/anchor")
	if sig, err := s.Sign(t.Context(), []byte("message")); err != nil || string(sig) != "signature" {
		t.Errorf("%q, %v", sig, err)
	}
	if in := d.sign; *in.KeyId != "alias/anchor" || string(in.Message) != "message" || in.MessageType != "RAW" || in.SigningAlgorithm != "ECDSA_SHA_256" {
		t.Errorf("%+v", in)
	}
	d.fail["Sign"], d.fail["GetPublicKey"] = refused("AccessDeniedException"), refused("NotFoundException")
	if sig, err := s.Sign(t.Context(), nil); !errors.Is(err, journal.ErrDenied) || sig != nil || !strings.Contains(err.Error(), "Sign alias/anchor") {
		t.Errorf("%q, %v", sig, err)
	}
	if key, err := s.PublicKey(t.Context()); !errors.Is(err, journal.ErrNoKey) || key != nil || !strings.Contains(err.Error(), "GetPublicKey alias/anchor") {
		t.Errorf("%q, %v", key, err)
	}
}

// TestBlobSizes: what KMS could not have made is a bad row, and is not sent to it.
func TestBlobSizes(t *testing.T) {
	for size, ok := range map[int]bool{0: false, 1: true, 6144: true, 6145: false} {
		d, _ := doubled()
		w := awskms.NewWrapper(d, nil)
		for name, call := range map[string]func() error{
			"Decrypt":   func() error { _, err := w.Decrypt(t.Context(), "k", make([]byte, size), nil); return err },
			"ReEncrypt": func() error { _, err := w.ReEncrypt(t.Context(), "k", "l", make([]byte, size), nil); return err },
			"Identify":  func() error { _, _, err := w.Identify(t.Context(), make([]byte, size), nil); return err },
		} {
			d.requests = nil
			if err := call(); ok != (err == nil) || !ok && !errors.Is(err, journal.ErrUnwrap) || ok != (len(d.requests) == 1) {
				t.Errorf("%s of %d bytes: %v after %v", name, size, err, d.requests)
			}
		}
	}
}

// TestClaimOfANewKey: an alias for a key that KMS does not find yet is asked for again.
func TestClaimOfANewKey(t *testing.T) {
	var o kms.Options
	o.Retryer = retry.NewStandard()
	if o.Retryer.IsErrorRetryable(&types.NotFoundException{}) {
		t.Fatal("the SDK repeats it by itself")
	}
	d, admin := doubled()
	if _, err := admin.Claim(t.Context(), "r", 2, "mine"); err != nil {
		t.Fatal(err)
	}
	for _, f := range d.options {
		f(&o)
	}
	if !o.Retryer.IsErrorRetryable(&types.NotFoundException{}) || o.Retryer.IsErrorRetryable(&types.AlreadyExistsException{}) {
		t.Error("it is not repeated, or more is")
	}
}
