package server

import (
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// auditService is stint.v1.AuditService.
type auditService struct {
	stintv1.UnimplementedAuditServiceServer

	server *Server
}
