package wiretrace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// Begin notes what is there before the first call: the pointer, no rotation being
// under way, its leases, and the rows. Nothing must be written meanwhile.
func (r *Recorder) Begin(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	client, bucket := r.cfg.Behind.DynamoDB, r.cfg.Behind.S3
	if err := scan(ctx, client, r.cfg.ControlTable, r.beginControl); err != nil {
		return err
	}
	if err := r.beginVault(ctx, bucket, r.events[0].Stored, r.events[0].Seq); err != nil {
		return err
	}
	for _, t := range r.cfg.Tables {
		err := scan(ctx, client, t.Table, func(items []item) error {
			for _, i := range items {
				if t.holds(i) {
					r.found(r.opened(t, t.written(trace.Event{Effect: trace.Plant, Source: t.Source, Row: t.id(i)}, i), i)...)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if r.cfg.Corpus == "" {
		return nil
	}
	return r.beginCorpus(ctx, bucket)
}

// found notes what was there before.
func (r *Recorder) found(events ...trace.Event) {
	for _, e := range events {
		if e.Caller = trace.Person; e.Effect == "Store.PutLease" {
			e.Caller = trace.Application
		}
		r.add(e)
	}
}

// beginVault notes the records that are in the bucket and not marked as such, because
// whoever put them died.
func (r *Recorder) beginVault(ctx context.Context, client S3, marked, head int64) error {
	for seq := marked + 1; seq <= head; seq++ {
		key := audit.ObjectKey(r.cfg.Stack, seq)
		out, err := client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &r.cfg.AuditBucket, Prefix: &key})
		if err != nil {
			return fmt.Errorf("begin to record: %w", err)
		}
		if len(out.Contents) > 0 {
			r.found(trace.Event{Effect: "Vault.Put", Seq: seq})
		}
	}
	return nil
}

// beginControl notes the pointer and its leases.
func (r *Recorder) beginControl(items []item) error {
	by := map[string]item{}
	shards := map[string]int{}
	for _, i := range items {
		by[i.str("pk")] = i
		if pk := i.str("pk"); strings.HasPrefix(pk, pkFence) {
			shards[pk]++
		}
	}
	pointer, head := by[pkPointer], by[pkAuditHead]
	id := pointer.str("kek_id")
	switch {
	case by[pkLock] != nil:
		return fmt.Errorf("rotation %s is under way", by[pkLock].str("rotation_id"))
	case id == "":
		return errors.New("there is no pointer")
	}
	r.found(trace.Event{
		Effect: trace.Snapshot, KEK: id, Epoch: pointer.num("epoch"), Shards: shards[pkFence+id],
		Seq: head.num("seq"), Stored: head.num("published_seq"),
	})
	for _, i := range items {
		if i.str("pk") == pkLease+id {
			r.found(trace.Event{Effect: "Store.PutLease", Actor: i.str("sk"), KEK: id, Expires: i.num("expires_at")})
		}
	}
	return nil
}

func (r *Recorder) beginCorpus(ctx context.Context, client S3) error {
	pages := s3.NewListObjectsV2Paginator(client, &s3.ListObjectsV2Input{Bucket: &r.cfg.CorpusBucket, Prefix: &r.cfg.CorpusPrefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("begin to record: %w", err)
		}
		for _, o := range page.Contents {
			if err := r.beginObject(ctx, client, aws.ToString(o.Key)); err != nil {
				return fmt.Errorf("begin to record %s: %w", aws.ToString(o.Key), err)
			}
		}
	}
	return nil
}

func (r *Recorder) beginObject(ctx context.Context, client S3, key string) error {
	if !strings.HasSuffix(key, ".json") {
		return nil
	}
	out, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &r.cfg.CorpusBucket, Key: &key})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	_, err = io.Copy(&b, out.Body)
	if err = errors.Join(err, out.Body.Close()); err != nil {
		return err
	}
	var k known
	if err := unmarshal(b.Bytes(), &k); err != nil {
		return err
	}
	before, e := r.planted(k, key)
	r.objects[key] = object{etag(aws.ToString(out.ETag)), e.KEK, e.Blob, e.Body}
	r.found(append(before, e)...)
	return nil
}

// scan reads a table whole.
func scan(ctx context.Context, client DynamoDB, table string, use func([]item) error) error {
	pages := dynamodb.NewScanPaginator(client, &dynamodb.ScanInput{TableName: &table, ConsistentRead: aws.Bool(true)})
	var all []item
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("begin to record %s: %w", table, err)
		}
		for _, i := range page.Items {
			all = append(all, fromSDK(i))
		}
	}
	if err := use(all); err != nil {
		return fmt.Errorf("begin to record %s: %w", table, err)
	}
	return nil
}

func fromSDK(in map[string]types.AttributeValue) item {
	out := make(item, len(in))
	for name, v := range in {
		switch v := v.(type) {
		case *types.AttributeValueMemberS:
			out[name] = attribute{S: &v.Value}
		case *types.AttributeValueMemberN:
			out[name] = attribute{N: &v.Value}
		case *types.AttributeValueMemberB:
			out[name] = attribute{B: v.Value}
		case *types.AttributeValueMemberBOOL:
			out[name] = attribute{BOOL: &v.Value}
		}
	}
	return out
}
