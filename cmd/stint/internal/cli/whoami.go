package cli

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const noneText = "none"

func (a *app) whoami() *cobra.Command {
	return &cobra.Command{
		Use: "whoami", Short: "Show who you are to the broker and what you may ask for", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			me, err := s.WhoAmI(ctx)
			if err != nil {
				return err
			}
			return a.show(me, func(w io.Writer) error { return whoamiTable(w, me, time.Now()) })
		}),
	}
}

func whoamiTable(w io.Writer, me *stintv1.WhoAmIResponse, now time.Time) error {
	t := render.NewTable()
	you := me.GetId() + "  (" + me.GetMethod()
	if me.GetSvidExpires() != nil {
		you += ", ends in " + render.Until(me.GetSvidExpires(), now)
	}
	t.Row("You", you+")")
	broker := []string{me.GetServerId(), "version " + me.GetServerVersion()}
	if skew := me.GetServerTime().AsTime().Sub(now); skew.Abs() > 5*time.Second {
		broker = append(broker, "its clock is "+render.Short(skew)+" from yours")
	}
	t.Row("Broker", strings.Join(broker, " · "))
	if me.GetProfile() == "" {
		t.Row("Profile", noneText+": no profile names this ID; tasks are denied")
	} else {
		t.Row("Profile", me.GetProfile()+" · owner "+me.GetOwner())
		t.Row("Purposes", strings.Join(me.GetPurposes(), ", "))
		t.Row("Tasks", "at most "+render.Duration(me.GetMaxTaskTtl()))
		t.Row("Roles", strings.Join(roleNames(me.GetRoles()), ", ")+"  (stint roles)")
		t.Row("Exposure", strings.Join(exposures(me.GetRoles()), ", "))
	}
	if len(me.GetAdminRoles()) > 0 {
		t.Row("Admin", strings.Join(me.GetAdminRoles(), ", "))
	}
	return t.Write(w)
}

func roleNames(roles []*stintv1.AvailableRole) []string {
	names := make([]string, 0, len(roles))
	for _, role := range roles {
		names = append(names, role.GetName())
	}
	return names
}

// exposures writes for each role how long its credentials may outlive their end.
func exposures(roles []*stintv1.AvailableRole) []string {
	out := make([]string, 0, len(roles))
	for _, role := range roles {
		out = append(out, role.GetName()+" "+exposure(role.GetExposure()))
	}
	return out
}

func (a *app) roles() *cobra.Command {
	return &cobra.Command{
		Use: "roles", Short: "List the roles you may ask for", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Tasks().ListAvailableRoles(ctx, &stintv1.ListAvailableRolesRequest{})
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error {
				t := render.NewTable("ROLE", "TTL", "MAX", "EXPOSURE", "PARAMETERS", "DESCRIPTION")
				for _, r := range answer.GetRoles() {
					t.Row(r.GetName(), render.Duration(r.GetDefaultTtl()), render.Duration(r.GetMaxTtl()), exposure(r.GetExposure()),
						parameters(r.GetParameters()), r.GetDescription())
				}
				return t.Write(w)
			})
		}),
	}
}

// parameters writes what a role may be asked with: "schema=[a-z]+", with "!" where it must be given.
func parameters(all []*stintv1.ParameterInfo) string {
	out := make([]string, 0, len(all))
	for _, p := range all {
		text := p.GetName()
		if p.GetRequired() {
			text += "!"
		}
		if p.GetPattern() != "" {
			text += "=" + p.GetPattern()
		}
		out = append(out, text)
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, " ")
}

// exposure writes how long a credential may outlive its end: "5s", "1m5s*" where only those who check revocation know,
// "unbounded".
func exposure(e *stintv1.Exposure) string {
	switch {
	case e.GetMax() == nil && e.GetUntilExpiry():
		return "expiry"
	case e.GetMax() == nil:
		return "unbounded"
	case e.GetUntilExpiry():
		return render.Duration(e.GetMax()) + "*"
	}
	return render.Duration(e.GetMax())
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			info := struct {
				Version  string `json:"version"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
			}{a.version, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
			return a.show(info, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "stint %s %s %s\n", info.Version, info.Go, info.Platform)
				return err
			})
		},
	}
}
