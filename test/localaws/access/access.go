// Package access says which IAM actions an AWS request takes, on which resources,
// and with what condition keys: the knowledge of the Service Authorization
// Reference for the services that this project calls.
package access

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/test/localaws/iam"
	"github.com/matter-ops/kms-rotation/test/localaws/wire"
)

const maxBody = 20 << 20 // DynamoDB takes 16 MiB

// Key is a KMS key as conditions see it.
type Key struct {
	ARN     string
	Tags    map[string]string
	Aliases []string
}

// Resolver tells what a request does not say itself.
type Resolver interface {
	// HashKey returns the name of the hash key of a table, "" if there is no table.
	HashKey(ctx context.Context, table string) (string, error)
	// Key returns the KMS key of an id, ARN, alias or alias ARN; its ARN is "" if
	// there is no key.
	Key(ctx context.Context, id string) (Key, error)
}

// Reader reads requests.
type Reader struct {
	Resolver
	Region, Account string
	Now             func() time.Time
}

// Of returns the accesses that a request takes. It reads bodies, other than those of
// S3 objects, and puts them back.
func (d Reader) Of(r *http.Request, c wire.Call) ([]iam.Access, error) {
	var out []iam.Access
	var err error
	switch c.Service {
	case "dynamodb":
		out, err = d.dynamodb(r, c)
	case "kms":
		out, err = d.kms(r, c)
	case "s3":
		out = d.s3(r, c)
	case "events":
		out, err = d.events(r, c)
	case "lambda":
		out = d.lambda(r, c)
	case "cloudformation":
		out, err = d.cloudformation(r, c)
	case "scheduler":
		out = []iam.Access{{Action: "scheduler:" + c.Operation, Resource: d.arn("scheduler", "schedule/"+cmp.Or(r.URL.Query().Get("groupName"), "default")+"/"+path.Base(r.URL.Path))}}
	case "sns":
		out, err = d.sns(r, c)
	case "secretsmanager":
		out, err = d.secret(r, c)
	case "states":
		out, err = d.states(r, c)
	default:
		out = []iam.Access{{Action: prefix(c.Service) + ":" + c.Operation, Resource: "*"}}
	}
	for i := range out {
		if out[i].Context == nil {
			out[i].Context = map[string][]string{}
		}
		// The loopback interface stands for TLS here.
		out[i].Context["aws:securetransport"] = []string{"true"}
		out[i].Context["aws:requestedregion"] = []string{d.Region}
		out[i].Context["aws:principalaccount"] = []string{d.Account}
	}
	return out, err
}

// prefix is a service's name in actions, where it is not its signing name.
func prefix(service string) string {
	switch service {
	case "monitoring":
		return "cloudwatch"
	case "tagging":
		return "tag"
	default:
		return service
	}
}

func (d Reader) arn(service, rest string) string {
	return "arn:aws:" + service + ":" + d.Region + ":" + d.Account + ":" + rest
}

// lambda is for Invoke; other operations are nothing that a function does.
// lambda reads requests whose paths are …/functions/NAME/…; those of a list are for no function.
func (d Reader) lambda(r *http.Request, c wire.Call) []iam.Access {
	if c.Operation != "Invoke" {
		out := iam.Access{Action: "lambda:" + c.Operation, Resource: "*"}
		if _, after, ok := strings.Cut(r.URL.Path, "/functions/"); ok {
			name, _, _ := strings.Cut(after, "/")
			out.Resource = d.arn("lambda", "function:"+name)
		}
		return []iam.Access{out}
	}
	name := c.Function
	if _, after, ok := strings.Cut(name, ":function:"); ok {
		name = after
	}
	return []iam.Access{{Action: "lambda:InvokeFunction", Resource: d.arn("lambda", "function:"+name)}}
}

// cloudformation reads requests for a stack by its name. The stack's id, which ends its ARN, is
// not in the request.
func (d Reader) cloudformation(r *http.Request, c wire.Call) ([]iam.Access, error) {
	body, err := wire.Body(r, maxBody)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, fmt.Errorf("form: %w", err)
	}
	resource := "*"
	if name := form.Get("StackName"); name != "" {
		resource = d.arn("cloudformation", "stack/"+name+"/id")
	}
	return []iam.Access{{Action: "cloudformation:" + c.Operation, Resource: resource}}, nil
}

func (d Reader) secret(r *http.Request, c wire.Call) ([]iam.Access, error) {
	body, err := wire.Body(r, maxBody)
	if err != nil {
		return nil, err
	}
	var in struct{ SecretId string } //nolint:revive // the name on the wire
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	if !strings.HasPrefix(in.SecretId, "arn:") {
		in.SecretId = d.arn("secretsmanager", "secret:"+in.SecretId)
	}
	return []iam.Access{{Action: "secretsmanager:" + c.Operation, Resource: in.SecretId}}, nil
}

// states is for state machines and their executions.
func (d Reader) states(r *http.Request, c wire.Call) ([]iam.Access, error) {
	body, err := wire.Body(r, maxBody)
	if err != nil {
		return nil, err
	}
	var in struct{ StateMachineArn, ExecutionArn string }
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	return []iam.Access{{Action: "states:" + c.Operation, Resource: cmp.Or(in.StateMachineArn, in.ExecutionArn, "*")}}, nil
}

// events reads the entries of PutEvents: each is a use of its bus, with its source and
// detail-type as condition keys.
func (d Reader) events(r *http.Request, c wire.Call) ([]iam.Access, error) {
	if c.Operation != "PutEvents" {
		return []iam.Access{{Action: "events:" + c.Operation, Resource: "*"}}, nil
	}
	body, err := wire.Body(r, maxBody)
	if err != nil {
		return nil, err
	}
	var in struct {
		Entries []struct{ EventBusName, Source, DetailType string }
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	var out []iam.Access
	for _, e := range in.Entries {
		bus := cmp.Or(e.EventBusName, "default")
		if !strings.HasPrefix(bus, "arn:") {
			bus = d.arn("events", "event-bus/"+bus)
		}
		out = append(out, iam.Access{Action: "events:PutEvents", Resource: bus, Context: map[string][]string{"events:source": {e.Source}, "events:detail-type": {e.DetailType}}})
	}
	return out, nil
}

func (d Reader) sns(r *http.Request, c wire.Call) ([]iam.Access, error) {
	body, err := wire.Body(r, maxBody)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, fmt.Errorf("form: %w", err)
	}
	resource := "*"
	for _, name := range []string{"TopicArn", "TargetArn", "ResourceArn"} {
		if v := form.Get(name); v != "" {
			resource = v
		}
	}
	return []iam.Access{{Action: "sns:" + c.Operation, Resource: resource}}, nil
}

// leadingKeys is the condition key of the partition keys that a request touches.
const leadingKeys = "dynamodb:leadingkeys"

// attributes is the condition key of the attributes that an update names. Other requests have
// it too; no policy here asks for theirs.
const attributes = "dynamodb:attributes"

// item is an attribute value on the wire: one of S, N and B, for keys.
type item map[string]map[string]any

// ref is what requests of DynamoDB say of a table and a key in it.
type ref struct {
	TableName                string
	Key, Item                item
	ExpressionAttributeNames map[string]string
}

func (d Reader) dynamodb(r *http.Request, c wire.Call) ([]iam.Access, error) {
	body, err := wire.Body(r, maxBody)
	if err != nil {
		return nil, err
	}
	ctx := r.Context()
	switch c.Operation {
	case "TransactWriteItems", "TransactGetItems":
		return d.transaction(ctx, body)
	case "BatchGetItem", "BatchWriteItem":
		return d.batch(ctx, body, c.Operation)
	case "Query":
		return d.query(ctx, body)
	}
	var in ref
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	a, err := d.item(ctx, c.Operation, in)
	return []iam.Access{a}, err
}

// table returns the ARN of a table's name, which may be an ARN.
func (d Reader) table(name string) string {
	if strings.HasPrefix(name, "arn:") {
		return name
	}
	return d.arn("dynamodb", "table/"+name)
}

// item is the access of an operation on one item, or on a table if no key is given.
func (d Reader) item(ctx context.Context, operation string, in ref) (iam.Access, error) {
	if in.TableName == "" {
		return iam.Access{Action: "dynamodb:" + operation, Resource: "*"}, nil
	}
	a := iam.Access{Action: "dynamodb:" + operation, Resource: d.table(in.TableName)}
	key := in.Key
	if key == nil {
		key = in.Item
	}
	if key == nil {
		return a, nil
	}
	hash, err := d.HashKey(ctx, in.TableName)
	if err != nil || hash == "" {
		return a, err
	}
	a.Context = map[string][]string{leadingKeys: {scalar(key[hash])}}
	if operation == "UpdateItem" {
		names := slices.Sorted(maps.Values(in.ExpressionAttributeNames))
		for name := range key {
			names = append(names, name)
		}
		a.Context[attributes] = names
	}
	return a, nil
}

// scalar is the value of a key attribute as a condition compares it.
func scalar(v map[string]any) string {
	for _, x := range v {
		return fmt.Sprint(x)
	}
	return ""
}

// transaction authorises each item by the action that it would be alone, and then all
// items of an action and table together. AWS documents that Put, Update, Delete and
// ConditionCheck are governed by the actions of that name (DynamoDB Developer Guide, "IAM
// and transactions"), and not which of a request's keys dynamodb:LeadingKeys has: a policy
// must allow both.
func (d Reader) transaction(ctx context.Context, body []byte) ([]iam.Access, error) {
	var in struct {
		TransactItems []map[string]ref
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	operations := map[string]string{
		"Get": "GetItem", "Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem",
	}
	var out []iam.Access
	for _, one := range in.TransactItems {
		for kind, ref := range one {
			a, err := d.item(ctx, operations[kind], ref)
			if err != nil {
				return nil, err
			}
			out = append(out, a)
		}
	}
	return append(out, together(out)...), nil
}

// together merges the keys of accesses that share action and resource.
func together(each []iam.Access) []iam.Access {
	var out []iam.Access
	for _, a := range each {
		keys := a.Context[leadingKeys]
		i := slices.IndexFunc(out, func(b iam.Access) bool { return b.Action == a.Action && b.Resource == a.Resource })
		switch {
		case len(keys) == 0:
		case i < 0:
			out = append(out, iam.Access{Action: a.Action, Resource: a.Resource, Context: map[string][]string{leadingKeys: slices.Clone(keys)}})
		default:
			out[i].Context[leadingKeys] = append(out[i].Context[leadingKeys], keys...)
		}
	}
	return slices.DeleteFunc(out, func(a iam.Access) bool { return len(a.Context[leadingKeys]) < 2 })
}

func (d Reader) batch(ctx context.Context, body []byte, operation string) ([]iam.Access, error) {
	var in struct {
		RequestItems map[string]json.RawMessage
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	var out []iam.Access
	for table, raw := range in.RequestItems {
		hash, err := d.HashKey(ctx, table)
		if err != nil {
			return nil, err
		}
		keys, err := batchKeys(raw, operation)
		if err != nil {
			return nil, err
		}
		a := iam.Access{Action: "dynamodb:" + operation, Resource: d.table(table), Context: map[string][]string{}}
		for _, k := range keys {
			a.Context[leadingKeys] = append(a.Context[leadingKeys], scalar(k[hash]))
		}
		out = append(out, a)
	}
	return out, nil
}

func batchKeys(raw json.RawMessage, operation string) ([]item, error) {
	if operation == "BatchGetItem" {
		var in struct{ Keys []item }
		err := json.Unmarshal(raw, &in)
		return in.Keys, err
	}
	var in []struct {
		PutRequest    *struct{ Item item }
		DeleteRequest *struct{ Key item }
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	var out []item
	for _, one := range in {
		if one.PutRequest != nil {
			out = append(out, one.PutRequest.Item)
		}
		if one.DeleteRequest != nil {
			out = append(out, one.DeleteRequest.Key)
		}
	}
	return out, nil
}

// query reads the hash key's value out of "name = :value AND …".
func (d Reader) query(ctx context.Context, body []byte) ([]iam.Access, error) {
	var in struct {
		TableName, IndexName, KeyConditionExpression string
		ExpressionAttributeNames                     map[string]string
		ExpressionAttributeValues                    item
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	a := iam.Access{Action: "dynamodb:Query", Resource: d.table(in.TableName), Context: map[string][]string{}}
	if in.IndexName != "" {
		a.Resource += "/index/" + in.IndexName
	}
	hash, err := d.HashKey(ctx, in.TableName)
	if err != nil {
		return nil, err
	}
	word := strings.Fields(strings.NewReplacer("=", " = ", "(", " ", ")", " ").Replace(in.KeyConditionExpression))
	for i := range max(0, len(word)-2) {
		name := word[i]
		if n, ok := in.ExpressionAttributeNames[name]; ok {
			name = n
		}
		if name == hash && word[i+1] == "=" {
			a.Context[leadingKeys] = []string{scalar(in.ExpressionAttributeValues[word[i+2]])}
		}
	}
	return []iam.Access{a}, nil
}

// tags adds the condition keys of tags in a request.
func tags(into map[string][]string, given map[string]string) {
	for k, v := range given {
		into["aws:requesttag/"+strings.ToLower(k)] = []string{v}
		into["aws:tagkeys"] = append(into["aws:tagkeys"], k)
	}
	slices.Sort(into["aws:tagkeys"])
}
