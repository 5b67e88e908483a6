package awskms_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/google/go-cmp/cmp"

	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/test/mototest"
)

// script answers an operation instead of moto, by what its request says.
func script(op string, by func(request map[string]any) any) mototest.Wire {
	return func(r *http.Request, next func(*http.Request) (*http.Response, error)) (*http.Response, error) {
		if !is(op)(r) {
			return next(r)
		}
		var request map[string]any
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			return nil, err
		}
		body, err := json.Marshal(by(request))
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, err
	}
}

type m = map[string]any

// useOf is the use of a key that nobody else uses, but for what the wires answer.
func useOf(t *testing.T, wires ...mototest.Wire) (keyring.Use, error) {
	t.Helper()
	say := func(answer m) func(map[string]any) any { return func(map[string]any) any { return answer } }
	return service(mototest.Config(t, append(
		wires,
		script("DescribeKey", say(m{"KeyMetadata": m{"KeyId": "k", "Arn": "arn:aws:kms:eu-central-1:123456789012:key/k"}})),
		script("ListGrants", say(m{"Grants": []m{}})),
		script("ListAliases", say(m{"Aliases": []m{}})),
		script("GetKeyPolicy", say(m{"Policy": "{}"})),
		script("GetKeyLastUsage", say(m{"KeyLastUsage": m{}})),
	)...)).Keys.Use(t.Context(), "k")
}

// TestUsePages: lists are read to their ends, over an empty page too.
func TestUsePages(t *testing.T) {
	grant := func(n string) m {
		return m{"GranteePrincipal": "arn:aws:iam::1:role/" + n, "Operations": []string{"Decrypt", "Encrypt"}, "GrantId": n}
	}
	alias := func(n string) m { return m{"AliasName": "alias/" + n} }
	use, err := useOf(
		t,
		script("ListGrants", func(in map[string]any) any {
			return map[any]any{
				nil: m{"Grants": []m{grant("c")}, "Truncated": true, "NextMarker": "2"},
				"2": m{"Grants": []m{}, "Truncated": true, "NextMarker": "3"},
				"3": m{"Grants": []m{grant("a"), grant("b")}},
			}[in["Marker"]].(m)
		}),
		script("ListAliases", func(in map[string]any) any {
			return map[any]any{
				nil: m{"Aliases": []m{}, "Truncated": true, "NextMarker": "2"},
				"2": m{"Aliases": []m{alias("y"), alias("matter/kek/another-stack/Q1/1")}, "Truncated": true, "NextMarker": "3"},
				"3": m{"Aliases": []m{alias("x")}},
			}[in["Marker"]].(m)
		}),
	)
	want := keyring.Use{
		Grants: []string{
			"arn:aws:iam::1:role/a may Decrypt, Encrypt, id a",
			"arn:aws:iam::1:role/b may Decrypt, Encrypt, id b",
			"arn:aws:iam::1:role/c may Decrypt, Encrypt, id c",
		},
		Aliases: []string{"alias/matter/kek/another-stack/Q1/1", "alias/x", "alias/y"},
	}
	if d := cmp.Diff(want, use); d != "" || err != nil {
		t.Errorf("%v, use (-want +got):\n%s", err, d)
	}
}

// TestGrants: a grant's line says all that tells whose it is, and none of an
// application's own context.
func TestGrants(t *testing.T) {
	names := m{} // so many that a map hardly ever lists them in order
	for r := 'a'; r <= 'z'; r++ {
		names[string(r)] = "x"
	}
	use, err := useOf(t, script("ListGrants", func(map[string]any) any {
		return m{"Grants": []m{
			{
				"GranteePrincipal": "dynamodb.eu-central-1.amazonaws.com", "Operations": []string{"CreateGrant"}, "GrantId": "1",
				"Constraints": m{"EncryptionContextSubset": m{"aws:dynamodb:tableName": "orders", "tenant": "4111-1111"}}, "RetiringPrincipal": "arn:aws:iam::1:root",
			},
			{
				"GranteePrincipal": "arn:aws:iam::1:role/r", "Operations": []string{"Decrypt"}, "GrantId": "3",
				"Constraints": m{"EncryptionContextSubset": names},
			},
			{
				"GranteePrincipal": "arn:aws:iam::1:role/s", "Operations": []string{"Decrypt"}, "GrantId": "4",
				"Constraints": m{"SourceArn": "arn:aws:s3:::b"},
			},
			{"Operations": []string{"Decrypt"}, "GrantId": "5", "Constraints": m{}},
			{
				"GranteeServicePrincipal": "s3.amazonaws.com", "Operations": []string{"Decrypt"}, "GrantId": "2",
				"Constraints": m{"EncryptionContextEquals": m{"card": "4111-1111"}, "SourceArn": "arn:aws:s3:::b"}, "RetiringServicePrincipal": "rds.amazonaws.com",
			},
		}}
	}))
	want := []string{
		"arn:aws:iam::1:role/r may Decrypt, only with context a b c d e f g h i j k l m n o p q r s t u v w x y z, id 3",
		"arn:aws:iam::1:role/s may Decrypt, only for arn:aws:s3:::b, id 4",
		"dynamodb.eu-central-1.amazonaws.com may CreateGrant, only with context aws:dynamodb:tableName=orders tenant, may be retired by arn:aws:iam::1:root, id 1",
		"s3.amazonaws.com may Decrypt, only with context card, only for arn:aws:s3:::b, may be retired by rds.amazonaws.com, id 2",
		"that names no grantee may Decrypt, id 5",
	}
	if d := cmp.Diff(want, use.Grants); d != "" || err != nil {
		t.Errorf("%v, grants (-want +got):\n%s", err, d)
	}
}

// TestPolicies: what a key policy lets anybody do that the policy of a new key does not
// is named, however it is written, and nothing else.
func TestPolicies(t *testing.T) {
	const root = `"arn:aws:iam::123456789012:root"`
	statement := func(principal, more string) string {
		return `{"Effect":"Allow","Principal":{"AWS":` + principal + `},"Action":"kms:*","Resource":"*"` + more + `}`
	}
	some := func(actions string) string {
		return `{"Statement":[{"Sid":"ours","Effect":"Allow","Principal":{"AWS":` + root + `},"Action":` + actions + `,"Resource":"*"}]}`
	}
	const rest = " (of kms:* kms:ScheduleKeyDeletion, kms:CreateGrant and whatever else a KEK is not used for)"
	for document, want := range map[string][]string{
		// What CreateKey gives a key without a policy, in every way to write it.
		`{"Statement":[` + statement(root, `,"Sid":"Enable IAM User Permissions"`) + `]}`:                         {"Enable IAM User Permissions" + rest},
		`{"Statement":[` + statement(root, "") + `]}`:                                                             {"statement 1" + rest},
		`{"Statement":` + statement(root, "") + `}`:                                                               {"statement 1" + rest},
		`{"Statement":[` + statement("["+root+"]", "") + `]}`:                                                     {"statement 1" + rest},
		`{"Statement":[` + statement(`"123456789012"`, "") + `]}`:                                                 {"statement 1" + rest},
		`{"Statement":[{"Effect":"Allow","Principal":{"AWS":` + root + `},"Action":["kms:*"],"Resource":["*"]}]}`: {"statement 1" + rest},
		// What a new key has too.
		some(`"kms:Decrypt"`):                             nil,
		some(`["kms:decrypt","kms:PutKeyPolicy"]`):        nil,
		some(`["kms:Decrypt","kms:ScheduleKeyDeletion"]`): {"ours (kms:ScheduleKeyDeletion)"},
		some(`["kms:CreateGrant","kms:Verify"]`):          {"ours (kms:CreateGrant, kms:Verify)"},
		some(`["kms:ReplicateKey"]`):                      {"ours (kms:ReplicateKey)"}, // of a multi-Region key alone
		some(`"kms:Re*"`):                                 {"ours (kms:Re*)"},
		some(`[7]`):                                       {"ours"},
		`{}`:                                              nil,

		`{"Statement":[` + statement(root, `,"Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"}}`) + `]}`:                                                                              {"statement 1"},
		`{"Statement":[` + statement(`"arn:aws:iam::123456789012:role/admin"`, "") + `]}`:                                                                                                     {"statement 1"},
		`{"Statement":[` + statement(`"arn:aws:iam::210987654321:root"`, `,"Sid":"partner"`) + `]}`:                                                                                           {"partner"},
		`{"Statement":[` + statement(`"*"`, "") + `]}`:                                                                                                                                        {"statement 1"},
		`{"Statement":[` + statement("["+root+`,"arn:aws:iam::210987654321:root"]`, "") + `]}`:                                                                                                {"statement 1"},
		`{"Statement":[{"Effect":"Deny","Principal":{"AWS":` + root + `},"Action":"kms:*","Resource":"*"}]}`:                                                                                  {"statement 1"},
		`{"Statement":[{"Effect":"Allow","Principal":{"AWS":` + root + `},"Action":["kms:*","kms:Decrypt"],"Resource":"*"}]}`:                                                                 {"statement 1" + rest},
		`{"Statement":[{"Effect":"Allow","Principal":{"AWS":` + root + `,"Service":"s3.amazonaws.com"},"Action":"kms:*","Resource":"*"}]}`:                                                    {"statement 1"},
		`{"Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}]}`:                                                                                                  {"statement 1"},
		`{"Statement":{"Sid":"all","Effect":"Allow","NotPrincipal":{"AWS":` + root + `},"Action":"kms:*","Resource":"*"}}`:                                                                    {"all"},
		`{"Statement":[{"Sid":"a","Effect":"Deny"},{"Effect":"Allow","Principal":{"AWS":` + root + `},"Action":"kms:Decrypt","Resource":"*"},{"Effect":"Deny"},{"Sid":"b","Effect":"Deny"}]}`: {"a", "statement 3", "b"},
	} {
		use, err := useOf(t, script("GetKeyPolicy", func(map[string]any) any { return m{"Policy": document} }))
		if d := cmp.Diff(want, use.Policy); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", document, err, d)
		}
	}
	noARN := script("DescribeKey", func(map[string]any) any { return m{"KeyMetadata": m{"KeyId": "k"}} })
	if use, err := useOf(t, noARN); err == nil || !strings.Contains(err.Error(), "GetKeyPolicy") || !cmp.Equal(use, keyring.Use{}) {
		t.Errorf("a key without an ARN, whose account is not known: %+v, %v", use, err)
	}
	for _, document := range []string{"", "no JSON", `{"Statement":["x"]}`} {
		_, err := useOf(t, script("GetKeyPolicy", func(map[string]any) any { return m{"Policy": document} }))
		if err == nil || !strings.Contains(err.Error(), "GetKeyPolicy") {
			t.Errorf("policy %q: %v, want an error", document, err)
		}
	}
}

// TestUseErrors: a question that is not answered is an error that says which, and
// never an answer that nobody uses the key. An endpoint without GetKeyLastUsage alone
// leaves the last use unknown.
func TestUseErrors(t *testing.T) {
	for _, op := range []string{"DescribeKey", "ListGrants", "ListAliases", "GetKeyPolicy", "GetKeyLastUsage"} {
		for code, want := range map[string]error{
			"AccessDeniedException": journal.ErrDenied, "NotFoundException": journal.ErrNoKey, "KMSInternalException": nil,
			"UnknownOperationException": nil, "UnknownOperation": nil, "UnsupportedOperationException": nil, "UnsupportedOperation": nil,
			"InvalidAction": nil,
		} {
			use, err := useOf(t, answer(op, code, "no"), script("ListAliases", func(map[string]any) any { return m{"Aliases": []m{{"AliasName": "alias/a"}}} }))
			if op == "GetKeyLastUsage" && (strings.HasPrefix(code, "Un") || code == "InvalidAction") {
				if err != nil || use.LastUse != "" || !use.LastUseAt.IsZero() || len(use.Aliases) != 1 {
					t.Errorf("%s in %s: %+v, %v", code, op, use, err)
				}
				continue
			}
			if err == nil || want != nil && !errors.Is(err, want) || !strings.Contains(err.Error(), op) || !cmp.Equal(use, keyring.Use{}) {
				t.Errorf("%s in %s: %+v, %v, want %v", code, op, use, err, want)
			}
		}
	}
}

// TestNeverUsed: a key that KMS has not seen used has no last use, however KMS says so.
func TestNeverUsed(t *testing.T) {
	for _, says := range []m{{}, {"KeyLastUsage": nil}, {"KeyLastUsage": m{}}} {
		use, err := useOf(t, script("GetKeyLastUsage", func(map[string]any) any { return says }))
		if err != nil || use.LastUse != "" || !use.LastUseAt.IsZero() || use.LastUseBy != "" {
			t.Errorf("%v: %+v, %v", says, use, err)
		}
	}
}

// TestReplicas: only a primary key has replicas to lose.
func TestReplicas(t *testing.T) {
	for kind, want := range map[string][]string{"PRIMARY": {"eu-west-1", "us-east-1"}, "REPLICA": nil} {
		use, err := useOf(t, script("DescribeKey", func(map[string]any) any {
			return m{"KeyMetadata": m{
				"KeyId": "k", "Arn": "arn:aws:kms:eu-central-1:123456789012:key/k", "MultiRegion": true,
				"MultiRegionConfiguration": m{"MultiRegionKeyType": kind, "ReplicaKeys": []m{{"Region": "us-east-1"}, {"Region": "eu-west-1"}}},
			}}
		}))
		if d := cmp.Diff(keyring.Use{MultiRegion: true, Replicas: want}, use); d != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", kind, err, d)
		}
	}
}

// TestIdentify: the request names no key, the answer must name one.
func TestIdentify(t *testing.T) {
	const arn = "arn:aws:kms:eu-central-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab"
	for name, ok := range map[string]bool{arn: true, "1234abcd-12ab-34cd-56ef-1234567890ab": false, "": false} {
		var sent map[string]any
		s := service(mototest.Config(t, script("Decrypt", func(in map[string]any) any {
			sent = in
			return m{"KeyId": name, "Plaintext": "c2VjcmV0"}
		})))
		id, got, err := s.KMS.Identify(t.Context(), []byte("blob"), map[string]string{"id": "a"})
		if ok && (string(id) != "mrk-1234abcd12ab34cd56ef1234567890ab" || got != arn || err != nil) || !ok && (err == nil || id != "" || got != "") {
			t.Errorf("answer %q: %q, %q, %v", name, id, got, err)
		}
		if d := cmp.Diff(map[string]any{"CiphertextBlob": "YmxvYg==", "EncryptionContext": m{"id": "a"}}, sent); d != "" {
			t.Errorf("request (-want +got):\n%s", d)
		}
	}
}

// TestIdentifyRefuses: what is too short or too long to be a blob is a bad row, without
// a request.
func TestIdentifyRefuses(t *testing.T) {
	w := awskms.NewWrapper(&cleared{}, nil) // it would be answered
	for _, size := range []int{0, 6145} {
		if _, _, err := w.Identify(t.Context(), make([]byte, size), nil); !errors.Is(err, journal.ErrUnwrap) {
			t.Errorf("%d bytes: %v, want ErrUnwrap", size, err)
		}
	}
}

// TestIdentifyGone: a blob whose key is not there is denied, as on AWS, and no bad
// row.
func TestIdentifyGone(t *testing.T) {
	s := service(mototest.Config(t))
	blob := append([]byte("00000000-0000-0000-0000-000000000000"), bytes.Repeat([]byte{7}, 60)...)
	_, _, err := s.KMS.Identify(t.Context(), blob, nil)
	if !errors.Is(err, journal.ErrDenied) || errors.Is(err, journal.ErrUnwrap) {
		t.Errorf("%v, want ErrDenied", err)
	}
}

// cleared is a client that keeps what it answered.
type cleared struct {
	*kms.Client
	plaintext []byte
}

func (c *cleared) Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error) {
	c.plaintext = []byte("secret")
	return &kms.DecryptOutput{KeyId: aws.String("arn:aws:kms:eu-central-1:123456789012:key/k"), Plaintext: c.plaintext}, nil
}

// TestIdentifyClears: what was unwrapped to find the key is not left in memory.
func TestIdentifyClears(t *testing.T) {
	c := &cleared{}
	w := awskms.NewWrapper(c, nil)
	if _, _, err := w.Identify(t.Context(), []byte("blob"), nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.plaintext, make([]byte, len("secret"))) {
		t.Error("the plaintext is still there")
	}
}
