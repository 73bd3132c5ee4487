package attestor

// AdminRole is one of the fixed roles of administration. They do not nest by themselves: what each may do is written
// down where it is enforced.
type AdminRole string

// The administration roles.
const (
	RoleAdmin    AdminRole = "admin"    // applies resources; may do what the others may
	RoleOperator AdminRole = "operator" // lists everybody's tasks and leases, and stops them
	RoleAuditor  AdminRole = "auditor"  // reads
)

// AdminRoles returns the roles, the most powerful first.
func AdminRoles() []AdminRole { return []AdminRole{RoleAdmin, RoleOperator, RoleAuditor} }
