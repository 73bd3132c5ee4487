package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/hcl/v2"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/config"
)

// least is the shortest valid configuration.
const least = `
task_trust_domain = "tasks.example.org"
identity {
  workload_api = "unix:///run/spire/sockets/agent.sock"
}
audit { origin = "stint.example.org/audit" }
`

var plugins = []string{"stepca", "vault"}

var compare = cmp.Options{
	cmp.Comparer(func(a, b attestor.Pattern) bool { return a.String() == b.String() }),
	cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b }),
	cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b }),
	cmpopts.IgnoreTypes(hcl.Range{}),
	cmpopts.IgnoreFields(config.Backend{}, "Body"),
}

func td(name string) spiffeid.TrustDomain { return spiffeid.RequireTrustDomainFromString(name) }

// minimal is what least means.
func minimal() config.Config {
	want := config.Default()
	want.TaskTrustDomain = td("tasks.example.org")
	want.Identity.WorkloadAPI = "unix:///run/spire/sockets/agent.sock"
	want.Audit.Origin = "stint.example.org/audit"
	return want
}

func TestParseDefaults(t *testing.T) {
	got, err := config.Parse("stint.hcl", []byte(least), plugins...)
	if err != nil {
		t.Fatal(err)
	}
	want := minimal()
	if diff := cmp.Diff(&want, got, compare); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

// TestParseTokens: the listener for JWT-SVIDs takes a Workload API, so it stands in no configuration that has all else.
func TestParseTokens(t *testing.T) {
	got, err := config.Parse("stint.hcl", []byte(least+`listen { jwt = "127.0.0.1:3" }`), plugins...)
	if err != nil || got.Listen.JWT != "127.0.0.1:3" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseEverything(t *testing.T) {
	src, err := os.ReadFile("testdata/full.hcl")
	if err != nil {
		t.Fatal(err)
	}
	got, err := config.Parse("full.hcl", src, plugins...)
	if err != nil {
		t.Fatal(err)
	}
	want := full(t)
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
	src, err = os.ReadFile("testdata/full.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err = config.Parse("full.json", src, plugins...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Errorf("json is not like hcl (-want +got):\n%s", diff)
	}
}

// full is what testdata/full.hcl means: no key has its default.
func full(t *testing.T) *config.Config {
	t.Helper()
	ops, err := attestor.ParsePattern("spiffe://example.org/ops/*")
	if err != nil {
		t.Fatal(err)
	}
	return &config.Config{
		DataDir:         "/srv/stint",
		TaskTrustDomain: td("tasks.example.org"),
		Resources:       "/etc/stint/resources.d",
		Listen: config.Listen{
			GRPC: "127.0.0.1:1", HTTP: "127.0.0.1:2", Admin: "/run/other.sock", Reflection: true,
		},
		Identity: config.Identity{
			CertFile: "/svid.pem", KeyFile: "/svid.key", BundleFile: "/bundle.pem",
			SPIFFEID:     spiffeid.RequireFromString("spiffe://example.org/stint"),
			TrustDomains: []spiffeid.TrustDomain{td("example.org")},
		},
		Admins: []config.Admin{{Pattern: ops, Role: attestor.RoleOperator}},
		Ledger: config.Ledger{Type: "sqlite", StopIssuingBelow: 2 * config.GiB},
		Audit: config.Audit{
			Origin: "o", KeyFile: "/etc/k", File: "", Checkpoints: "",
		},
		Limits: config.Limits{
			ConnectionMaxAge: time.Minute, ConnectionGrace: 2 * time.Second, HandshakeTimeout: 3 * time.Second,
			MaxConcurrentStreams: 5, MaxMessage: 128 * config.KiB,
		},
		Teardown: config.Teardown{StuckAfter: time.Hour}, Reconcile: config.Reconcile{Every: 0},
		Log:      config.Log{Level: "debug", Format: "console"},
		Backends: []config.Backend{{Type: "vault", Name: "prod"}, {Type: "stepca", Name: "internal"}},
	}
}

func TestParseFaults(t *testing.T) {
	tests := map[string]struct{ src, want string }{
		"unknown key":        {least + `data_dri = "/x"`, `c.hcl:7: unsupported argument: An argument named "data_dri" is not expected here. Did you mean "data_dir"?`},
		"unknown inner key":  {least + "limits {\n  max_mesage = \"1MiB\"\n}", `Did you mean "max_message"?`},
		"unknown block":      {least + "teardwn {}", `Did you mean "teardown"?`},
		"syntax":             {"listen {", "c.hcl:1:"},
		"no audit":           {strings.Replace(least, "audit {", "audit_ {", 1), `the block "audit" is missing`},
		"no origin":          {strings.Replace(least, `origin = "stint.example.org/audit"`, "", 1), `The argument "origin" is required`},
		"no task domain":     {"identity {}\naudit { origin = \"o\" }", `The argument "task_trust_domain" is required`},
		"no identity source": {strings.Replace(least, `workload_api = "unix:///run/spire/sockets/agent.sock"`, "", 1), "set workload_api"},
		"both sources":       {strings.Replace(least, "identity {", "identity {\ncert_file = \"/c\"", 1), "only one can be"},
		"files, two domains": {strings.Replace(least, `workload_api = "unix:///run/spire/sockets/agent.sock"`, "cert_file = \"/c\"\nkey_file = \"/k\"\nbundle_file = \"/b\"\ntrust_domains = [\"a\", \"b\"]", 1), "one trust domain only"},
		"tokens from files":  {strings.Replace(least, `workload_api = "unix:///run/spire/sockets/agent.sock"`, "cert_file = \"/c\"\nkey_file = \"/k\"\nbundle_file = \"/b\"", 1) + "listen {\njwt = \"127.0.0.1:3\"\n}", "no JWT-SVID can be verified"},
		"half the files":     {strings.Replace(least, `workload_api = "unix:///run/spire/sockets/agent.sock"`, `cert_file = "/c"`, 1), "go together"},
		"task domain ours":   {strings.Replace(least, "identity {", "identity {\nspiffe_id = \"spiffe://tasks.example.org/stint\"\n", 1), "task_trust_domain: tasks.example.org is one that agents come from"},
		"task domain listed": {strings.Replace(least, "identity {", "identity {\ntrust_domains = [\"tasks.example.org\"]\n", 1), "task_trust_domain: tasks.example.org is one that agents come from"},
		"bad trust domain":   {strings.Replace(least, "tasks.example.org", "spiffe://tasks", 1), "without spiffe://"},
		"bad address":        {least + `listen { grpc = "7846" }`, "write host:port"},
		"bad port":           {least + `listen { http = ":http" }`, "not a port number"},
		"no grpc":            {least + `listen { grpc = "" }`, "write host:port"},
		"one address twice":  {least + "listen {\ngrpc = \":1\"\njwt = \":1\"\n}", "c.hcl:9: listen.jwt: :1 is the address of listen.grpc"},
		"socket relative":    {least + `listen { admin = "unix://run/x" }`, "must be absolute"},
		"socket scheme":      {least + `listen { admin = "/run/x" }`, "must begin with unix://"},
		"socket long":        {least + `listen { admin = "unix:///` + strings.Repeat("x", 107) + `" }`, "108 bytes, unix sockets take 107"},
		"path relative":      {least + `data_dir = "var"`, "must be absolute"},
		"audit key":          {least + `data_dir = "/etc/stint"`, "audit.key_file: /etc/stint/audit.key is in data_dir"},
		"origin":             {strings.Replace(least, "stint.example.org/audit", "a b", 1), "without spaces"},
		"size without unit":  {least + `limits { max_message = "65536" }`, "as in 512MiB"},
		"size too small":     {least + `limits { max_message = "1B" }`, "not between 16KiB and 16MiB"},
		"duration":           {least + `teardown { stuck_after = "10" }`, "write a number with a unit"},
		"duration too long":  {least + `limits { connection_max_age = "25h" }`, "not between 1s and 24h"},
		"number for string":  {least + `teardown { stuck_after = 10 }`, "write a string in quotes, not a number"},
		"null":               {least + `data_dir = null`, "leave the key out"},
		"fraction":           {least + `limits { max_concurrent_streams = 1.5 }`, "whole number between 1 and 65536"},
		"flag":               {least + `listen { reflection = "maybe" }`, "write true or false"},
		"variable":           {least + `data_dir = home`, "variables not allowed"},
		"log level":          {least + `log { level = "trace" }`, "there are debug, info, warn, error"},
		"ledger type":        {least + `ledger "postgres" {}`, `ledger: unknown value "postgres"; there are sqlite`},
		"listen twice":       {least + "listen {}\nlisten {}", "c.hcl:8: listen stands here a second time; the first is in line 7"},
		"ledger twice":       {least + "ledger \"sqlite\" {}\nledger \"sqlite\" {}", "c.hcl:8:"},
		"list":               {strings.Replace(least, "identity {", "identity {\ntrust_domains = \"x\"\n", 1), "square brackets"},
		"list of numbers":    {strings.Replace(least, "identity {", "identity {\ntrust_domains = [1]\n", 1), "string in quotes"},
		"admin pattern":      {least + `admins "example.org" { role = "admin" }`, "must begin with spiffe://"},
		"admin role":         {least + `admins "spiffe://example.org/x" { role = "root" }`, "there are admin, operator, auditor"},
		"admin twice":        {least + "admins \"spiffe://example.org/x\" { role = \"admin\" }\nadmins \"spiffe://example.org/x\" { role = \"auditor\" }", "c.hcl:8:"},
		"admin task domain":  {least + `admins "spiffe://tasks.example.org/x" { role = "admin" }`, "nobody calls with a certificate of the task trust domain"},
		"admin foreign":      {strings.Replace(least, "identity {", "identity {\nspiffe_id = \"spiffe://example.org/s\"\n", 1) + `admins "spiffe://example.com/x" { role = "admin" }`, "example.com is not accepted"},
		"workload api":       {strings.Replace(least, "unix:///run", "http://127.0.0.1", 1), "unix:///path or tcp://ip:port"},
		"spiffe id":          {strings.Replace(least, "identity {", "identity {\nspiffe_id = \"spiffe://example.org\"\n", 1), "has no path"},
		"backend type":       {least + `backend "volt" "prod" {}`, `unknown type "volt"; there are stepca, vault`},
		"backend name":       {least + `backend "vault" "Prod/1" {}`, "lower-case letters, digits and dashes"},
		"backend twice":      {least + "backend \"vault\" \"a\" {}\nbackend \"vault\" \"a\" {}", "a second time"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse("c.hcl", []byte(test.src), plugins...)
			if c != nil || err == nil {
				t.Fatalf("got %v, want a fault", c)
			}
			if faults, ok := errors.AsType[*config.Error](err); !ok || len(faults.Faults) == 0 || faults.Faults[0].Line == 0 {
				t.Errorf("not an *Error with a line: %v", err)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got:\n%v\nwant: %s", err, test.want)
			}
		})
	}
}

// All faults are named at once, by position.
func TestParseAllFaults(t *testing.T) {
	src := "data_dir = \"x\"\nlisten { grpc = \"x\" }\nlimits { connection_grace = \"x\" }\nfoo = 1\n"
	_, err := config.Parse("c.hcl", []byte(src))
	faults, ok := errors.AsType[*config.Error](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	var lines []int
	for _, f := range faults.Faults {
		lines = append(lines, f.Line)
	}
	// Line 1 stands for what is missing, too: task_trust_domain, identity and audit.
	if diff := cmp.Diff([]int{1, 1, 1, 1, 2, 3, 4}, lines); diff != "" {
		t.Errorf("lines (-want +got):\n%s\nof\n%v", diff, err)
	}
}

func TestParseAccepts(t *testing.T) {
	for name, src := range map[string]string{
		"tcp workload api": strings.Replace(least, "unix:///run/spire/sockets/agent.sock", "tcp://127.0.0.1:8081", 1),
		"off":              least + "listen {\nhttp = \"\"\nadmin = \"\"\n}",
		"any ports":        least + "listen {\nhttp = \"127.0.0.1:0\"\ngrpc = \"127.0.0.1:0\"\n}",
		"key near data":    least + `data_dir = "/etc/stint/audit"`,
		"sizes":            least + `ledger "sqlite" { stop_issuing_below = "1048576B" }`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := config.Parse("c.hcl", []byte(src), plugins...); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stint.hcl")
	if _, err := config.Load(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte(least), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path); err != nil {
		t.Error(err)
	}
}

func TestCheckProfile(t *testing.T) {
	c, err := config.Parse("c.hcl", []byte(least+`admins "spiffe://example.org/ops/*" { role = "admin" }`))
	if err != nil {
		t.Fatal(err)
	}
	agent := func(text string) attestor.Pattern {
		p, parseErr := attestor.ParsePattern(text)
		if parseErr != nil {
			t.Fatal(parseErr)
		}
		return p
	}
	if checkErr := c.CheckProfile("p", agent("spiffe://example.org/agent/*")); checkErr != nil {
		t.Error(checkErr)
	}
	err = c.CheckProfile("p", agent("spiffe://example.org/agent/*"), agent("spiffe://example.org/**"))
	if faults, ok := errors.AsType[*config.Error](err); !ok || len(faults.Faults) != 1 || faults.Faults[0].Line != 7 {
		t.Errorf("got %v, want one fault in line 7", err)
	}
}

func TestDomains(t *testing.T) {
	c := minimal()
	c.Identity.TrustDomains = []spiffeid.TrustDomain{td("example.org"), td("partner.example")}
	d, err := c.Domains(td("example.org"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(td("partner.example")); err != nil {
		t.Error(err)
	}
	if _, err := c.Domains(td("tasks.example.org")); err == nil {
		t.Error("the task trust domain as the own one was accepted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(least), false)
	for _, name := range []string{"testdata/full.hcl", "testdata/full.json"} {
		src, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src, filepath.Ext(name) == ".json")
	}
	f.Fuzz(func(t *testing.T, src []byte, asJSON bool) {
		name := "f.hcl"
		if asJSON {
			name = "f.json"
		}
		c, err := config.Parse(name, src, plugins...)
		if err != nil {
			if faults, ok := errors.AsType[*config.Error](err); !ok || len(faults.Faults) == 0 {
				t.Fatalf("not an *Error: %v", err)
			}
			return
		}
		if c.TaskTrustDomain.IsZero() || c.Audit.Origin == "" || c.Listen.GRPC == "" || len(c.Listen.Admin) > 107 {
			t.Fatalf("accepted %+v", c)
		}
		if (c.Identity.WorkloadAPI == "") == (c.Identity.KeyFile == "") {
			t.Fatalf("accepted identity %+v", c.Identity)
		}
	})
}

// TestGraceOutlastsEveryCall: a call that waits for teardown, 60 s at most, must survive the recycling of its connection.
func TestGraceOutlastsEveryCall(t *testing.T) {
	t.Parallel()
	if grace := config.Default().Limits.ConnectionGrace; grace <= time.Minute {
		t.Errorf("connection_grace is %s by default", grace)
	}
}
