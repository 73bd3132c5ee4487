package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	standardInput = "-"
	maxDocument   = 1 << 20
)

func (a *app) apply() *cobra.Command {
	var files []string
	var dryRun, prune bool
	cmd := &cobra.Command{
		Use: "apply -f FILE…", Short: "Make roles, profiles and policies what files say, for admins", Args: cobra.NoArgs,
		Long: "Make roles, profiles and policies what YAML files say, all or nothing. A folder stands for the .yaml and .yml files\n" +
			"in it, - for standard input.",
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			documents, err := readDocuments(files)
			if err != nil {
				return err
			}
			ctx, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Admin().Apply(ctx, &stintv1.ApplyRequest{Documents: documents, DryRun: dryRun, Prune: prune})
			if err != nil {
				return err
			}
			for _, warning := range answer.GetWarnings() {
				a.sayf("warning: %s", warning)
			}
			return a.show(answer, func(w io.Writer) error {
				t := render.NewTable()
				for _, c := range answer.GetChanges() {
					t.Row(c.GetName(), c.GetAction())
				}
				t.Row("policy set " + answer.GetPolicySet() + dryRunText(dryRun))
				return t.Write(w)
			})
		}),
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "a file, a folder, or - for standard input; repeat for more")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, and change nothing")
	cmd.Flags().BoolVar(&prune, "prune", false, "also delete what the files do not name")
	_ = cmd.MarkFlagRequired("file") // it fails for unknown flags only
	return cmd
}

//nolint:revive // the flag is the person's decision
func dryRunText(dryRun bool) string {
	if dryRun {
		return " (dry run: nothing was changed)"
	}
	return ""
}

func readDocuments(names []string) ([]*stintv1.Document, error) {
	var out []*stintv1.Document
	for _, name := range names {
		files, err := expandFolder(name)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			document, err := readDocument(file)
			if err != nil {
				return nil, err
			}
			out = append(out, document)
		}
	}
	if len(out) == 0 {
		return nil, usage("there is no .yaml or .yml file in %s", strings.Join(names, ", "))
	}
	return out, nil
}

// expandFolder returns the YAML files in a folder, or the file itself.
func expandFolder(name string) ([]string, error) {
	if name == standardInput {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, usage("%v", err)
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, fmt.Errorf("read folder: %w", err)
	}
	var files []string
	for _, entry := range entries {
		if ext := filepath.Ext(entry.Name()); !entry.IsDir() && (ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(name, entry.Name()))
		}
	}
	slices.Sort(files)
	return files, nil
}

func readDocument(name string) (*stintv1.Document, error) {
	var in io.Reader = os.Stdin
	if name != standardInput {
		file, err := os.Open(name)
		if err != nil {
			return nil, usage("%v", err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(text) > maxDocument {
		return nil, usage("%s is longer than 1 MiB", name)
	}
	return &stintv1.Document{File: name, Yaml: string(text)}, nil
}

func (a *app) get() *cobra.Command {
	cmd := &cobra.Command{Use: "get", Short: "List profiles, roles or policies, for operators", Args: cobra.NoArgs, RunE: needsCommand}
	for name, kind := range map[string]stintv1.ResourceKind{
		"profiles": stintv1.ResourceKind_RESOURCE_KIND_PROFILE,
		"roles":    stintv1.ResourceKind_RESOURCE_KIND_ROLE,
		"policies": stintv1.ResourceKind_RESOURCE_KIND_POLICY,
	} {
		cmd.AddCommand(&cobra.Command{
			Use: name, Short: "List " + name + "; -o yaml prints the documents as they were applied", Args: cobra.NoArgs,
			RunE: a.with(func(ctx context.Context, s session, _ []string) error { return s.resources(ctx, kind) }),
		})
	}
	return cmd
}

func (s session) resources(ctx context.Context, kind stintv1.ResourceKind) error {
	ctx, cancel := s.app.call(ctx)
	defer cancel()
	answer, err := s.Admin().ListResources(ctx, &stintv1.ListResourcesRequest{Kind: kind})
	if err != nil {
		return err
	}
	format, _ := s.app.format()
	if format == render.FormatYAML {
		return documents(s.app.stdout, answer.GetResources())
	}
	return s.app.show(answer, func(w io.Writer) error {
		t := render.NewTable("NAME", "BACKEND", "EXPOSURE", "SOURCE")
		if format == render.FormatWide {
			t = render.NewTable("NAME", "BACKEND", "EXPOSURE", "SOURCE", "ETAG", "WHY")
		}
		for _, r := range answer.GetResources() {
			exposed := "-"
			if r.GetKind() == stintv1.ResourceKind_RESOURCE_KIND_ROLE {
				exposed = exposure(r.GetExposure())
			}
			row := []string{r.GetName(), dash(r.GetBackend()), exposed, r.GetSource()}
			if format == render.FormatWide {
				row = append(row, r.GetEtag(), r.GetExposure().GetReason())
			}
			t.Row(row...)
		}
		return t.Write(w)
	})
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// documents prints resources so that apply reads them again.
func documents(w io.Writer, resources []*stintv1.Resource) error {
	for i, r := range resources {
		text := strings.TrimSuffix(strings.TrimPrefix(r.GetYaml(), "---\n"), "\n") + "\n"
		if i > 0 {
			text = "---\n" + text
		}
		if err := render.Document(w, text); err != nil {
			return err
		}
	}
	return nil
}
