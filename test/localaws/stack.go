// Package localaws is an AWS account on this machine, in memory: no Docker, no
// account, no network. One process serves it at one endpoint. DynamoDB is dynoxide; the
// Lambda functions are the built binaries over the real Runtime API; everything else is
// moto; and the stack is the shipped template, put through the official SAM translator.
//
// The endpoint is a proxy, so that it can do what neither server does: count calls,
// make chosen ones fail (package fault), refuse stale signatures, hold moto to what
// AWS guarantees, and hold every function to the policies of its role (packages iam
// and access): so the shipped permissions are shown to suffice. It does not check
// signatures themselves.
package localaws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"golang.org/x/sync/errgroup"

	"github.com/matter-ops/kms-rotation/test/localaws/backend"
	"github.com/matter-ops/kms-rotation/test/localaws/fault"
	"github.com/matter-ops/kms-rotation/test/localaws/lambdahost"
)

// Access key ids of who is no function.
const (
	AccessKey      = "LOCAL" // the operator
	ApplicationKey = "APPLICATION"
)

// Options are the choices for [Start]; the zero value is good.
type Options struct {
	Port       int               // of the loopback interface; 0 for a free one
	Root       string            // of the module; "" for [backend.Root]
	Template   string            // path of the SAM template; "" for Root/template.yaml
	StackName  string            // "" for matter
	Region     string            // "" for eu-central-1
	Dir        string            // gets logs/<function>.log; "" for Root/.local
	Programs   map[string]string // paths of bootstraps by function, over Root/build/local/<function>/bootstrap
	Parameters map[string]string // of the template, over its defaults
	NoIAM      bool              // leave the roles' permissions unchecked

	// Prepare, if not nil, runs when the servers are up and before the stack is
	// created: it makes what the stack is told about, such as source tables, and
	// tells it by [Stack.SetParameters].
	Prepare func(ctx context.Context, s *Stack) error
}

// Stack is a running local AWS with the deployed stack.
type Stack struct {
	URL     string            // the endpoint
	Name    string            // of the stack
	Region  string            //
	Outputs map[string]string // of the stack

	o            Options
	parameters   map[string]string
	dynamo, moto *backend.Server
	host         *lambdahost.Host
	proxy        *proxy
	server       *http.Server
	stateMachine string // ARN, of normal rotations
	emergency    string // ARN, of emergencies
	environment  map[string]string
	failed       chan error
	stopping     chan struct{}
	close        sync.Once
}

// Start starts the servers and deploys the stack; ctx bounds only the start. The
// caller closes what it returns. Every process dies with this one.
func Start(ctx context.Context, o Options) (*Stack, error) {
	if o.Root == "" {
		root, err := backend.Root()
		if err != nil {
			return nil, err
		}
		o.Root = root
	}
	o.Template = cmp.Or(o.Template, filepath.Join(o.Root, "template.yaml"))
	o.Dir = cmp.Or(o.Dir, filepath.Join(o.Root, ".local"))
	s := &Stack{
		Name: cmp.Or(o.StackName, "matter"), Region: cmp.Or(o.Region, "eu-central-1"), o: o,
		parameters: map[string]string{}, failed: make(chan error, 1), stopping: make(chan struct{}),
	}
	maps.Copy(s.parameters, o.Parameters)
	if err := s.start(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Stack) start(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.o.Port)))
	if err != nil {
		return fmt.Errorf("open the endpoint: %w", err)
	}
	address := listener.Addr().(*net.TCPAddr) //nolint:forcetypeassert // it is TCP
	s.URL = "http://" + address.String()
	if err := s.startBackends(ctx, address.Port); err != nil {
		return errors.Join(err, listener.Close())
	}
	s.host, err = lambdahost.New(lambdahost.Options{
		Address: address.String(), Endpoint: s.URL, Region: s.Region, LogDir: filepath.Join(s.o.Dir, "logs"),
	})
	if err == nil {
		s.proxy, err = newProxy(s.dynamo.URL, s.moto.URL, s.host)
	}
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	s.serve(listener)
	if s.o.Prepare != nil {
		if err := s.o.Prepare(ctx, s); err != nil {
			return err
		}
	}
	if err := s.deploy(ctx); err != nil {
		return err
	}
	s.proxy.calls.reset()
	s.proxy.ready.Store(true)
	return nil
}

func (s *Stack) startBackends(ctx context.Context, port int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		s.dynamo, err = backend.DynamoDB(ctx)
		return err
	})
	g.Go(func() (err error) {
		s.moto, err = backend.Moto(ctx, backend.MotoOptions{CallbackPort: port})
		return err
	})
	return g.Wait()
}

// serve serves the endpoint and watches the servers behind it.
func (s *Stack) serve(listener net.Listener) {
	s.server = &http.Server{
		Handler: s.proxy, ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(&discard{}, "", 0), // dropped connections are what faults are for
	}
	go func() {
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.fail(fmt.Errorf("serve the local AWS: %w", err))
		}
	}()
	for name, b := range map[string]*backend.Server{"dynoxide": s.dynamo, "moto": s.moto} {
		go func() {
			<-b.Done()
			s.fail(fmt.Errorf("%s has ended", name))
		}()
	}
}

// fail reports that the local AWS is broken, unless it is being closed.
func (s *Stack) fail(err error) {
	select {
	case <-s.stopping:
		return
	default:
	}
	select {
	case s.failed <- err:
	default: // the first failure says it
	}
}

func (s *Stack) deploy(ctx context.Context) error {
	d := &deployment{
		name: s.Name, root: s.o.Root, templatePath: s.o.Template, region: s.Region,
		moto: s.config(s.moto.URL), dynamo: s.config(s.dynamo.URL), host: s.host, programs: s.o.Programs,
	}
	if err := d.run(ctx, s.parameters); err != nil {
		return err
	}
	s.Outputs = map[string]string{}
	for name, value := range d.outputs {
		if !strings.HasPrefix(name, outputPrefix) {
			s.Outputs[name] = value
		}
	}
	s.stateMachine, s.emergency = d.physical["StateMachine"], d.physical["EmergencyStateMachine"]
	s.environment = s.buildEnv()
	if s.o.NoIAM {
		return nil
	}
	p, err := d.loadPermissions(ctx)
	if err != nil {
		return fmt.Errorf("load the permissions: %w", err)
	}
	s.proxy.access.Store(p)
	return nil
}

// SetParameters adds parameters of the template, for [Options.Prepare].
func (s *Stack) SetParameters(p map[string]string) { maps.Copy(s.parameters, p) }

// Failed gets an error if the local AWS breaks after it has started.
func (s *Stack) Failed() <-chan error { return s.failed }

// StateMachineARN returns the ARN of the stack's resource StateMachine, "" if it has none.
func (s *Stack) StateMachineARN() string { return s.stateMachine }

// AWSConfig returns a configuration of the SDK for the operator.
func (s *Stack) AWSConfig() aws.Config { return s.config(s.URL) }

// ApplicationConfig returns a configuration of the SDK for a process that uses the
// library. It may do what the operator may; a tap tells the two apart.
func (s *Stack) ApplicationConfig() aws.Config {
	c := s.AWSConfig()
	c.Credentials = credentials.NewStaticCredentialsProvider(ApplicationKey, backend.Secret, "")
	return c
}

func (s *Stack) config(endpoint string) aws.Config {
	return aws.Config{
		Region: s.Region, BaseEndpoint: aws.String(endpoint),
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported, // as config.LoadDefaultConfig
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
		Credentials:                credentials.NewStaticCredentialsProvider(AccessKey, backend.Secret, ""),
		// Of its own: no HTTP proxy between here and the loopback interface.
		HTTPClient: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 3 * time.Second}},
	}
}

// Functions returns the functions of the stack.
func (s *Stack) Functions() []lambdahost.Function { return s.host.Functions() }

// Calls returns how often each call was made since the start or [Stack.ResetCalls].
func (s *Stack) Calls() []CallCount { return s.proxy.calls.list() }

// ResetCalls forgets the calls so far.
func (s *Stack) ResetCalls() { s.proxy.calls.reset() }

// AddFault puts a fault in force and returns it with its id and defaults.
func (s *Stack) AddFault(f fault.Fault) (fault.Fault, error) { return s.proxy.faults.Add(f) }

// Faults returns the faults in force with how often each has fired.
func (s *Stack) Faults() []fault.Fault { return s.proxy.faults.List() }

// ClearFaults lifts all faults.
func (s *Stack) ClearFaults() { s.proxy.faults.Clear() }

// Close stops everything and leaves no process; it may be called again.
func (s *Stack) Close() {
	s.close.Do(func() {
		close(s.stopping)
		if s.server != nil {
			_ = s.server.Close() // its connections are local
		}
		if s.host != nil {
			s.host.Close()
		}
		for _, b := range []*backend.Server{s.moto, s.dynamo} {
			if b != nil {
				b.Stop()
			}
		}
	})
}

// names returns the sorted keys of a map.
func names(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
