package awskms_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/resourcegroupstaggingapi"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/keystest"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

const id = "Q2-2026-rotation"

// old is the KEK that each new one follows.
var old = keyring.Key{ID: "old", ARN: "arn:aws:kms:eu-central-1:123456789012:key/old"}

// is selects the requests of one KMS operation.
func is(op string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.HasSuffix(r.Header.Get("X-Amz-Target"), "."+op) }
}

// answer answers an operation with an error instead of moto.
func answer(op, code, message string) mototest.Wire {
	return func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		if !is(op)(r) {
			return next(r)
		}
		body, err := json.Marshal(map[string]string{"__type": code, "message": message})
		return &http.Response{
			StatusCode: http.StatusBadRequest, Header: http.Header{"X-Amzn-Errortype": {code}},
			Body: io.NopCloser(bytes.NewReader(body)), Request: r,
		}, err
	}
}

func create(t *testing.T, s keystest.Service) keyring.Key {
	t.Helper()
	k, err := s.Keys.Create(t.Context(), id, 1, "Q2 2026", old)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestRequests: what is sent names the key and the whole context, and CreateKey
// carries every tag.
func TestRequests(t *testing.T) {
	sent := map[string]map[string]any{}
	s := service(mototest.Config(t, func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		var fields map[string]any
		if err := json.Unmarshal(body, &fields); err != nil {
			return nil, err
		}
		sent[op] = fields
		return next(r)
	}))
	stack := fmt.Sprintf("stack-%d", stacks.Load())
	old, fresh := create(t, s), create(t, s)
	if _, err := s.Keys.Claim(t.Context(), id, 1, old.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Keys.Tagged(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	encctx := map[string]string{"table": "orders"}
	_, wrapped, err := s.KMS.GenerateDataKey(t.Context(), old.ID, encctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.KMS.Decrypt(t.Context(), old.ID, wrapped, encctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.KMS.ReEncrypt(t.Context(), old.ID, fresh.ID, wrapped, encctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Keys.Use(t.Context(), old.ID); err != nil {
		t.Fatal(err)
	}

	blob, context := base64.StdEncoding.EncodeToString(wrapped), m{"table": "orders"}
	want := map[string]map[string]any{
		"CreateKey": {
			"Description": "KEK of " + stack + ", Q2 2026 (rotation Q2-2026-rotation, attempt 1, table 0d4fc4a7)",
			"KeySpec":     "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT", "MultiRegion": false,
			"Policy": sent["CreateKey"]["Policy"], "BypassPolicyLockoutSafetyCheck": true, // TestNewKeyPolicy has the policy
			"Tags": []any{
				m{"TagKey": "matter:stack", "TagValue": stack},
				m{"TagKey": "matter:rotation", "TagValue": id},
				m{"TagKey": "matter:attempt", "TagValue": "1"},
				m{"TagKey": "matter:label", "TagValue": "Q2 2026"},
			},
		},
		"CreateAlias": {"AliasName": "alias/matter/kek/" + stack + "/0d4fc4a7/Q2-2026-rotation/1", "TargetKeyId": string(old.ID)},
		"GetResources": {
			"ResourceTypeFilters": []any{"kms:key"},
			"TagFilters":          []any{m{"Key": "matter:stack", "Values": []any{stack}}, m{"Key": "matter:rotation", "Values": []any{id}}},
		},
		"GenerateDataKey": {"KeyId": string(old.ID), "KeySpec": "AES_256", "EncryptionContext": context},
		"Decrypt":         {"KeyId": string(old.ID), "CiphertextBlob": blob, "EncryptionContext": context},
		"ReEncrypt": {
			"SourceKeyId": string(old.ID), "DestinationKeyId": string(fresh.ID), "CiphertextBlob": blob,
			"SourceEncryptionContext": context, "DestinationEncryptionContext": context,
		},
		"DescribeKey":     {"KeyId": string(old.ID)},
		"ListGrants":      {"KeyId": string(old.ID)},
		"ListAliases":     {"KeyId": string(old.ID)},
		"GetKeyPolicy":    {"KeyId": string(old.ID), "PolicyName": "default"},
		"GetKeyLastUsage": {"KeyId": string(old.ID)},
	}
	if d := cmp.Diff(want, sent); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
}

// TestErrors: every refusal becomes what the steps branch on, and stays visible as
// what it was.
func TestErrors(t *testing.T) {
	verdicts := []error{journal.ErrNoKey, journal.ErrKeyDisabled, journal.ErrUnwrap, journal.ErrDenied}
	for code, want := range map[string]error{
		"NotFoundException":          journal.ErrNoKey,
		"DisabledException":          journal.ErrKeyDisabled,
		"KMSInvalidStateException":   journal.ErrKeyDisabled,
		"InvalidCiphertextException": journal.ErrUnwrap,
		"IncorrectKeyException":      journal.ErrUnwrap,
		"AccessDeniedException":      journal.ErrDenied,
		"AccessDenied":               journal.ErrDenied,
		"KeyUnavailableException":    nil,
		"KMSInternalException":       nil,
		"ThrottlingException":        nil,
		"DependencyTimeoutException": nil,
	} {
		for op, call := range map[string]func(keystest.Service) error{
			"Decrypt": func(s keystest.Service) error {
				_, err := s.KMS.Decrypt(t.Context(), "k", []byte("blob"), nil)
				return err
			},
			"ReEncrypt": func(s keystest.Service) error {
				_, err := s.KMS.ReEncrypt(t.Context(), "k", "l", []byte("blob"), nil)
				return err
			},
			"Decrypt by the key that the blob names": func(s keystest.Service) error {
				_, _, err := s.KMS.Identify(t.Context(), []byte("blob"), nil)
				return err
			},
			"GenerateDataKey": func(s keystest.Service) error {
				_, _, err := s.KMS.GenerateDataKey(t.Context(), "k", nil)
				return err
			},
			"DescribeKey": func(s keystest.Service) error {
				_, err := s.Keys.Describe(t.Context(), "k")
				return err
			},
		} {
			operation, _, _ := strings.Cut(op, " ")
			err := call(service(mototest.Config(t, answer(operation, code, "no"))))
			for _, v := range verdicts {
				if errors.Is(err, v) != (v == want) { //nolint:errorlint // both are the verdicts themselves
					t.Errorf("%s in %s: %v, want %v", code, op, err, want)
				}
			}
			if err == nil || !strings.Contains(err.Error(), op) || !strings.Contains(err.Error(), code) {
				t.Errorf("%s in %s: %v hides its cause", code, op, err)
			}
		}
	}
}

// TestSecrets: no error shows a blob or an encryption context, not even when KMS
// quotes it.
func TestSecrets(t *testing.T) {
	const secret = "4111-1111"
	encctx := map[string]string{"card": secret}
	for _, code := range []string{"ValidationException", "InvalidCiphertextException", "AccessDeniedException", "KMSInternalException"} {
		message := "no"
		if code == "ValidationException" {
			message = "1 validation error detected: Value '{card=" + secret + "}' at 'encryptionContext' failed to satisfy constraint"
		}
		for _, op := range []string{"Decrypt", "Decrypt by the key", "ReEncrypt", "GenerateDataKey"} {
			operation, _, _ := strings.Cut(op, " ")
			s := service(mototest.Config(t, answer(operation, code, message)))
			var err error
			switch op {
			case "Decrypt by the key":
				_, _, err = s.KMS.Identify(t.Context(), []byte(secret), encctx)
			case "Decrypt":
				_, err = s.KMS.Decrypt(t.Context(), "k", []byte(secret), encctx)
			case "ReEncrypt":
				_, err = s.KMS.ReEncrypt(t.Context(), "k", "l", []byte(secret), encctx)
			case "GenerateDataKey":
				_, _, err = s.KMS.GenerateDataKey(t.Context(), "k", encctx)
			}
			if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), base64.StdEncoding.EncodeToString([]byte(secret))) {
				t.Errorf("%s in %s: %v", code, op, err)
			}
			if unwrap := errors.Is(err, journal.ErrUnwrap); code == "ValidationException" && unwrap != (op != "GenerateDataKey") {
				t.Errorf("%s in %s: %v", code, op, err)
			}
		}
	}
}

// TestClaimOnABrokenWire: the SDK repeats a CreateAlias whose answer was lost; the
// second one finds the alias taken, by itself.
func TestClaimOnABrokenWire(t *testing.T) {
	for _, sent := range []bool{false, true} {
		s := service(mototest.Config(t, mototest.Break(is("CreateAlias"), sent)))
		k := create(t, s)
		if owner, err := s.Keys.Claim(t.Context(), id, 1, k.ID); err != nil || owner != k.ID {
			t.Errorf("sent %v: %q, %v", sent, owner, err)
		}
	}
}

// TestClaimUnseen: a loser who cannot see the owner yet must not take the alias to
// be free, nor the key to be gone.
func TestClaimUnseen(t *testing.T) {
	cfg := mototest.Config(t)
	s := service(cfg)
	k, other := create(t, s), create(t, s)
	if _, err := s.Keys.Claim(t.Context(), id, 1, k.ID); err != nil {
		t.Fatal(err)
	}
	stack := fmt.Sprintf("stack-%d", stacks.Load())
	lagging := awskms.NewAdmin(kms.NewFromConfig(mototest.Config(t, answer("DescribeKey", "NotFoundException", "not yet"))), nil, stack, "table")
	owner, err := lagging.Claim(t.Context(), id, 1, other.ID)
	if err == nil || owner != "" || errors.Is(err, journal.ErrNoKey) {
		t.Errorf("%q, %v, want an error that is worth another try", owner, err)
	}
}

// TestCreateOnABrokenWire: CreateKey has no idempotency token, so that a repeated
// request leaves a stray behind; its tag shows it.
func TestCreateOnABrokenWire(t *testing.T) {
	s := service(mototest.Config(t, mototest.Break(is("CreateKey"), true)))
	create(t, s)
	if ids, err := s.Keys.Tagged(t.Context(), id); err != nil || len(ids) != 2 {
		t.Errorf("%v, %v, want the key and the stray", ids, err)
	}
}

// TestTagsAreNoProof: a key of somebody else that carries the tags of a rotation, copied by
// a template or put there by a person who may tag keys, is none of its keys: a sweep would
// disable it.
func TestTagsAreNoProof(t *testing.T) {
	cfg := mototest.Config(t)
	client := kms.NewFromConfig(cfg)
	s := service(cfg)
	k := create(t, s)
	tags, err := client.ListResourceTags(t.Context(), &kms.ListResourceTagsInput{KeyId: aws.String(string(k.ID))})
	if err != nil || len(tags.Tags) < 3 {
		t.Fatalf("%v, %v", tags, err)
	}
	for _, description := range []string{"payroll master key", "", "KEK of " + string(k.ID) + ", l (rotation " + id + ", attempt 1)"} {
		if _, err := client.CreateKey(t.Context(), &kms.CreateKeyInput{
			Description: &description, KeyUsage: types.KeyUsageTypeEncryptDecrypt, Tags: tags.Tags,
		}); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := s.Keys.Tagged(t.Context(), id); err != nil || len(ids) != 1 || ids[0] != k.ID {
		t.Errorf("%v, %v, want %s alone", ids, err, k.ID)
	}
}

// TestStacks: two stacks in one account do not see each other's keys.
func TestStacks(t *testing.T) {
	a, b := newService(t), newService(t)
	k := create(t, a)
	if ids, err := b.Keys.Tagged(t.Context(), id); err != nil || len(ids) != 0 {
		t.Errorf("%v, %v", ids, err)
	}
	if _, err := a.Keys.Claim(t.Context(), id, 1, k.ID); err != nil {
		t.Fatal(err)
	}
	if owner, err := b.Keys.Claim(t.Context(), id, 1, ""); err != nil || owner != "" {
		t.Errorf("%q, %v", owner, err)
	}
}

// TestSecondLifeOfAStack: a stack that was deleted and deployed again under its name rotates
// under the name of a rotation of its former life, and neither adopts nor sweeps its KEK.
func TestSecondLifeOfAStack(t *testing.T) {
	cfg := mototest.Config(t)
	s := service(cfg)
	stack := fmt.Sprintf("stack-%d", stacks.Load())
	k := create(t, s)
	if owner, err := s.Keys.Claim(t.Context(), id, 1, k.ID); err != nil || owner != k.ID {
		t.Fatal(owner, err)
	}
	again := awskms.NewAdmin(kms.NewFromConfig(cfg), resourcegroupstaggingapi.NewFromConfig(cfg), stack, "another table")
	if owner, err := again.Claim(t.Context(), id, 1, ""); err != nil || owner != "" {
		t.Errorf("the alias is owned by %q, %v", owner, err)
	}
	if ids, err := again.Tagged(t.Context(), id); err != nil || len(ids) != 0 {
		t.Errorf("swept: %v, %v", ids, err)
	}
	fresh, err := again.Create(t.Context(), id, 1, "l", k)
	if err != nil {
		t.Fatal(err)
	}
	if owner, err := again.Claim(t.Context(), id, 1, fresh.ID); err != nil || owner != fresh.ID {
		t.Errorf("the alias is owned by %q, %v, not by %s", owner, err, fresh.ID)
	}
}

// TestPendingDeletion: a key that somebody has scheduled for deletion unwraps
// nothing, and need not be disabled.
func TestPendingDeletion(t *testing.T) {
	cfg := mototest.Config(t, answer("DisableKey", "KMSInvalidStateException", "is pending deletion"))
	s, client := service(cfg), kms.NewFromConfig(cfg)
	k := create(t, s)
	if err := s.Keys.Disable(t.Context(), k.ID); !errors.Is(err, journal.ErrKeyDisabled) {
		t.Errorf("Disable of a key in another state: %v", err)
	}
	_, wrapped, err := s.KMS.GenerateDataKey(t.Context(), k.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	name := string(k.ID)
	if _, err := client.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: &name}); err != nil {
		t.Fatal(err)
	}
	if err := s.Keys.Disable(t.Context(), k.ID); err != nil {
		t.Errorf("Disable: %v", err)
	}
	if got, err := s.Keys.Describe(t.Context(), k.ID); err != nil || got.Enabled || got.Usable || got.State != "PendingDeletion" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := s.KMS.Decrypt(t.Context(), k.ID, wrapped, nil); !errors.Is(err, journal.ErrKeyDisabled) {
		t.Errorf("Decrypt: %v, want ErrKeyDisabled", err)
	}
}

// TestOtherKinds: a key that cannot wrap is not usable, and ids of keys of any form
// are answered with the bare key id.
func TestOtherKinds(t *testing.T) {
	cfg := mototest.Config(t)
	s, client := service(cfg), kms.NewFromConfig(cfg)
	for _, in := range []kms.CreateKeyInput{
		{KeySpec: "ECC_NIST_P256", KeyUsage: "SIGN_VERIFY"},
		{KeySpec: "RSA_2048", KeyUsage: "ENCRYPT_DECRYPT"},
		{KeySpec: "HMAC_256", KeyUsage: "GENERATE_VERIFY_MAC"},
	} {
		out, err := client.CreateKey(t.Context(), &in)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []*string{out.KeyMetadata.KeyId, out.KeyMetadata.Arn} {
			k, err := s.Keys.Describe(t.Context(), kek.ID(*name))
			if err != nil || k.Usable || !k.Enabled || string(k.ID) != *out.KeyMetadata.KeyId || k.ARN != *out.KeyMetadata.Arn {
				t.Errorf("%s: %+v, %v", in.KeySpec, k, err)
			}
		}
	}
}

// TestBudget: every request spends the budget, the SDK's repetitions too; a refusal lowers it.
func TestBudget(t *testing.T) {
	var requests atomic.Int64
	count := func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		requests.Add(1)
		return next(r)
	}
	cfg := mototest.Config(t, count, mototest.Break(is("GenerateDataKey"), false))
	k := create(t, service(mototest.Config(t)))
	b := budget.New(budget.Params{Ceiling: 1, Workers: 1, Now: time.Now}) // the first request is free, the next a second later
	w := awskms.NewWrapper(kms.NewFromConfig(cfg), b)
	began := time.Now()
	_, wrapped, err := w.GenerateDataKey(t.Context(), k.ID, nil) // two requests
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("two requests took %s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := w.Decrypt(ctx, k.ID, wrapped, nil); err == nil || !strings.Contains(err.Error(), "wait for the budget") {
		t.Errorf("Decrypt: %v, want no unit left", err)
	}
	if n := requests.Load(); n != 2 {
		t.Errorf("%d requests were sent, want 2", n)
	}
}
