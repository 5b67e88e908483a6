package limits_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	dynamodbsdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/matter-ops/kms-rotation/envelope/aead"
	"github.com/matter-ops/kms-rotation/internal/app"
	"github.com/matter-ops/kms-rotation/internal/awskms"
	"github.com/matter-ops/kms-rotation/internal/budget"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/gates"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// blob is a wrapped data key of the length that KMS makes.
var blob = base64.StdEncoding.EncodeToString(make([]byte, 184))

// latencies are those of estimate.DefaultSettings, for the operations of a rewrap.
var latencies = map[string]time.Duration{
	"ReEncrypt": 5 * time.Millisecond, "Decrypt": 5 * time.Millisecond, "Encrypt": 5 * time.Millisecond,
	"UpdateItem": 4 * time.Millisecond, "Scan": 20 * time.Millisecond,
}

// serveAWS answers the requests of a rewrap over TLS, in a process of its own, so that its
// processor time is not counted.
func serveAWS() {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		target := r.Header.Get("X-Amz-Target")
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		answer := ""
		slow := os.Getenv("MATTER_LIMITS_SERVER") == "slow"
		if latency, ok := latencies[target[strings.LastIndex(target, ".")+1:]]; ok && slow {
			time.Sleep(latency)
		}
		switch {
		case strings.HasSuffix(target, "ReEncrypt"):
			answer = fmt.Sprintf(`{"CiphertextBlob":%q,"KeyId":"kek-0002","SourceKeyId":"kek-0001"}`, blob)
		case strings.HasSuffix(target, "Decrypt"):
			answer = fmt.Sprintf(`{"Plaintext":%q,"KeyId":"kek-0001"}`, base64.StdEncoding.EncodeToString(make([]byte, 32)))
		case strings.HasSuffix(target, "Encrypt"):
			answer = fmt.Sprintf(`{"CiphertextBlob":%q,"KeyId":"kek-0002"}`, blob)
		case strings.HasSuffix(target, "UpdateItem"):
			answer = `{"ConsumedCapacity":{"TableName":"orders","CapacityUnits":1}}`
		case strings.HasSuffix(target, "DescribeTable"):
			answer = `{"Table":{"TableName":"orders","TableStatus":"ACTIVE","KeySchema":[{"AttributeName":"id","KeyType":"HASH"}],"AttributeDefinitions":[{"AttributeName":"id","AttributeType":"S"}]}}`
		case strings.HasSuffix(target, "Scan"):
			// The segment's number is how many pages it has; 0 for one.
			var asked struct {
				Segment           int
				ExclusiveStartKey map[string]struct{ S string }
			}
			_ = json.Unmarshal(body, &asked)
			page, _ := strconv.Atoi(asked.ExclusiveStartKey["id"].S)
			var items []string
			for i := range 500 {
				own := base64.StdEncoding.EncodeToString(fmt.Appendf(make([]byte, 176), "%4d%4d", page, i)) // another data key for each row
				items = append(items, fmt.Sprintf(`{"id":{"S":"row-%06d"},"kek_id":{"S":"kek-0001"},"dek":{"B":%q},"ct":{"B":%q},"kek_epoch":{"N":"1"},"version":{"N":"1"}}`, i, own, blob))
			}
			last := ""
			if page+1 < asked.Segment {
				last = fmt.Sprintf(`,"LastEvaluatedKey":{"id":{"S":"%d"}}`, page+1)
			}
			answer = fmt.Sprintf(`{"Items":[%s],"Count":500,"ScannedCount":500%s}`, strings.Join(items, ","), last)
		}
		w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE([]byte(answer))), 10)) // DynamoDB's clients check it
		_, _ = io.WriteString(w, answer)
	}))
	server.EnableHTTP2 = false
	server.StartTLS()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	_ = json.NewEncoder(os.Stdout).Encode(map[string]string{"url": server.URL, "cert": string(cert)})
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark ends
}

func TestMain(m *testing.M) {
	if os.Getenv("MATTER_LIMITS_SERVER") != "" {
		serveAWS()
		return
	}
	os.Exit(m.Run())
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRow is one row with a data key of its own: ReEncrypt and UpdateItem by the shipped
// adapters and the SDK, over TLS, 64 at once; a page of 500 rows is scanned for each 500. With
// the shared key there is no ReEncrypt. It reports the processor time of a row. Of a walk the
// same is done by the step Rewrap, on one segment, with its checkpoints in memory.
func BenchmarkRow(b *testing.B) {
	b.Run("own", func(b *testing.B) { benchmarkRows(b, "fast", func(p process) { p.loop(b, rowsInFlight, p.reEncrypt) }) })
	b.Run("shared", func(b *testing.B) { benchmarkRows(b, "fast", func(p process) { p.loop(b, rowsInFlight, keepWrapped) }) })
	b.Run("walk", func(b *testing.B) { benchmarkRows(b, "fast", func(p process) { p.walk(b) }) })
}

// BenchmarkPeers is a rewrap of rows with data keys of their own, by the walk and by what one would
// write without it: loops over the same adapters, with answers as late as those of
// estimate.DefaultSettings. The time of an operation is that of a row.
func BenchmarkPeers(b *testing.B) {
	for _, workers := range []int{1, 16} {
		b.Run(fmt.Sprintf("Decrypt+Encrypt/%d", workers), func(b *testing.B) {
			benchmarkRows(b, "slow", func(p process) { p.loop(b, workers, p.decryptAndEncrypt) })
		})
	}
	for _, workers := range []int{16, rowsInFlight} {
		b.Run(fmt.Sprintf("ReEncrypt/%d", workers), func(b *testing.B) {
			benchmarkRows(b, "slow", func(p process) { p.loop(b, workers, p.reEncrypt) })
		})
	}
	b.Run("walk", func(b *testing.B) { benchmarkRows(b, "slow", func(p process) { p.walk(b) }) })
}

// process is what a worker has: KMS and a table, over TLS.
type process struct {
	kms   *kms.Client
	keys  *awskms.Wrapper
	table *dynamodb.Table
}

// rewrapping makes the wrapping of a row's data key under the new KEK.
type rewrapping func(context.Context, source.Row) ([]byte, error)

var encctx = map[string]string{"table": "orders"}

func keepWrapped(_ context.Context, row source.Row) ([]byte, error) { return row.WrappedDEK, nil }

func (p process) reEncrypt(ctx context.Context, row source.Row) ([]byte, error) {
	return p.keys.ReEncrypt(ctx, "kek-0001", "kek-0002", row.WrappedDEK, encctx)
}

// decryptAndEncrypt brings the data key into memory, which ReEncrypt does not.
func (p process) decryptAndEncrypt(ctx context.Context, row source.Row) ([]byte, error) {
	old, fresh := "kek-0001", "kek-0002"
	opened, err := p.kms.Decrypt(ctx, &kms.DecryptInput{KeyId: &old, CiphertextBlob: row.WrappedDEK, EncryptionContext: encctx})
	if err != nil {
		return nil, err
	}
	out, err := p.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &fresh, Plaintext: opened.Plaintext, EncryptionContext: encctx})
	if err != nil {
		return nil, err
	}
	return out.CiphertextBlob, nil
}

// benchmarkRows runs work with a server in a process of its own, that is fast or slow.
func benchmarkRows(b *testing.B, server string, work func(process)) {
	b.Helper()
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "MATTER_LIMITS_SERVER="+server)
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		b.Fatal(err)
	}
	var at struct{ URL, Cert string }
	if err := json.Unmarshal(line, &at); err != nil {
		b.Fatal(err)
	}
	b.Setenv("AWS_REGION", "eu-central-1")
	b.Setenv("AWS_ACCESS_KEY_ID", "a")
	b.Setenv("AWS_SECRET_ACCESS_KEY", "b")
	cfg, err := app.AWSConfig(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(at.Cert))
	cfg.BaseEndpoint, cfg.Credentials = &at.URL, credentials.NewStaticCredentialsProvider("a", "b", "")
	cfg.HTTPClient = cfg.HTTPClient.(*awshttp.BuildableClient).WithTransportOptions(func(t *http.Transport) {
		t.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS12}
		t.DialContext = (&net.Dialer{}).DialContext
	})
	unbound := budget.New(budget.Params{Ceiling: 1e9, Workers: 1, Now: time.Now, Usage: func(context.Context) (budget.Sample, error) {
		return budget.Sample{Minute: time.Now().Add(-time.Hour), Capacity: 1e9}, nil
	}})
	client := kms.NewFromConfig(cfg)
	table, err := dynamodb.Open(dynamodbsdk.NewFromConfig(cfg, func(o *dynamodbsdk.Options) {
		o.APIOptions = append(o.APIOptions, budget.SpendWrites(func(string) *budget.Budget { return unbound }))
	}), dynamodb.Config{Table: "orders", KEKID: "kek_id", WrappedDEK: "dek", Ciphertext: "ct", Epoch: "kek_epoch", Version: "version"}.Source())
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	work(process{client, awskms.NewWrapper(client, unbound), table})
}

// report reports the processor time of each row since a moment.
func report(b *testing.B, began time.Duration) {
	b.Helper()
	b.ReportMetric(float64((processorTime()-began).Microseconds())/float64(b.N), "µs-cpu/row")
}

// walk rewraps the rows by the step of a rotation. What comes before it is in memory.
func (p process) walk(b *testing.B) {
	b.Helper()
	w := memstore.New("bench", time.Now)
	store, keys := w.Store(), w.KMS()
	rows := w.NewTable("orders")
	def := rows.Source()
	def.Kind = memstore.KindCorpus
	j := &journal.Journal{Registry: store, Outbox: store, AuditBucket: w.Vault(), Now: time.Now, Actor: "bench"}
	pages := (b.N + 499) / 500
	s := &rotation.Steps{
		Config:  rotation.Config{DrainMaxWait: time.Minute, DeleteHold: 400 * 24 * time.Hour, Segments: pages + 1, FenceShards: 1, MaxMints: 1, CanaryRounds: 1},
		Journal: j, Gates: gates.Gates{Journal: j}, Drainage: store, Checkpoints: rotation.SealCheckpoints(store, memstore.CheckpointKeys{}), OpenSource: w.Open,
		Keys: keyring.Keyring{Admin: keys, Wrapper: keys, Cipher: aead.Cipher{}, Random: func(r []byte) { copy(r, "known plaintext") }},
		Pace: app.PaceAt(1e6), Memory: rotation.NewMemory(rotation.MemoryBytes),
	}
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	k, err := keys.Create(b.Context(), "", 0, "genesis", keyring.Key{})
	must(err)
	_, err = s.Genesis(b.Context(), k.ID, "genesis", []kek.Source{def})
	must(err)
	dek, wrapped, err := keys.GenerateDataKey(b.Context(), k.ID, encctx)
	must(err)
	sealed, err := s.Keys.Cipher.Seal(dek, []byte("known"), encctx)
	must(err)
	sum := sha256.Sum256([]byte("known"))
	must(rows.Insert(b.Context(), "known.json", memstore.Record{
		KEK: k.ID, Epoch: 1, Version: 1, WrappedDEK: wrapped, Ciphertext: sealed, Context: encctx, PlainSHA: hex.EncodeToString(sum[:]),
	}, 0))
	ctx, id := b.Context(), rotation.StepInput{RotationID: "r"}
	_, err = s.Preflight(ctx, rotation.PreflightInput{ExecutionARN: "arn:r", ExecutionName: "r"})
	must(err)
	_, err = s.Verify(ctx, rotation.VerifyInput{RotationID: "r", Census: true})
	must(err)
	_, err = s.Mint(ctx, id)
	must(err)
	_, err = s.Rewrap(ctx, rotation.RewrapInput{RotationID: "r", Rehearse: true})
	must(err)
	_, err = s.DualUnwrap(ctx, id)
	must(err)
	_, err = s.Switch(ctx, id)
	must(err)
	_, err = s.Drain(ctx, id)
	must(err)
	s.Keys.Wrapper = p.keys
	s.OpenSource = func(kek.Source) (source.Driver, error) { return p.table, nil }
	began := processorTime()
	b.ResetTimer()
	out, err := s.Rewrap(ctx, rotation.RewrapInput{RotationID: "r", Source: "orders", Segment: pages})
	if must(err); !out.Done || out.Tally.Rewrapped != int64(pages*500) {
		b.Fatalf("%+v", out)
	}
	b.ReportMetric(float64((processorTime()-began).Microseconds())/float64(pages*500), "µs-cpu/row")
}

// loop rewraps rows by nothing but the adapters: what a walk is compared with.
func (p process) loop(b *testing.B, workers int, rewrap rewrapping) {
	b.Helper()
	rows := make(chan source.Row, 500)
	var done sync.WaitGroup
	began := processorTime()
	for range workers {
		done.Go(func() {
			for row := range rows {
				wrapped, err := rewrap(b.Context(), row)
				if err != nil {
					b.Error(err)
				}
				if ok, err := p.table.Replace(b.Context(), row, source.Rewrapped{KEK: kek.ID("kek-0002"), Epoch: 2, WrappedDEK: wrapped}); err != nil || !ok {
					b.Error(ok, err)
				}
			}
		})
	}
	for n := 0; n < b.N; {
		page, err := p.table.Scan(b.Context(), source.ScanRequest{Total: 1})
		if err != nil {
			b.Fatal(err)
		}
		for _, row := range page.Rows {
			if n++; n <= b.N {
				rows <- row
			}
		}
	}
	close(rows)
	done.Wait()
	report(b, began)
}
