"""Alerts, incidents and the audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from stabilizer.collector.api.bodies import BoundedRoute
from stabilizer.collector.api.dependencies import IncidentId, RunId, ServicesDep
from stabilizer.collector.api.openapi import PREFIX, problems
from stabilizer.protocol.decisions import Alert, AlertState, Incident
from stabilizer.protocol.message import Message
from stabilizer.protocol.queries import AuditPage

router = APIRouter(prefix=PREFIX, tags=["incidents"], route_class=BoundedRoute)


class AlertQuery(Message):
    """Which alerts to list."""

    state: AlertState | None = None
    """State of the alerts; all states if omitted."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 200
    """Largest number of alerts."""


class AuditQuery(Message):
    """Page of the audit log."""

    after: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """`next_after` of the previous page."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    """Entries per page."""


@router.get("/runs/{run_id}/alerts", summary="List alerts of a run", responses=problems(404))
def list_alerts(
    run_id: RunId, query: Annotated[AlertQuery, Query()], services: ServicesDep
) -> list[Alert]:
    """List alerts, newest first."""
    return services.queries.alerts(run_id, query.state, query.limit)


@router.get("/runs/{run_id}/incidents", summary="List incidents of a run", responses=problems(404))
def list_incidents(run_id: RunId, services: ServicesDep) -> list[Incident]:
    """List incidents with their decisions."""
    return services.queries.incidents(run_id)


@router.get("/incidents/{incident_id}", summary="Show an incident", responses=problems(404))
def get_incident(incident_id: IncidentId, services: ServicesDep) -> Incident:
    """Show an incident with its decisions."""
    return services.queries.incident(incident_id)


@router.get("/runs/{run_id}/audit", summary="Show the audit log of a run", responses=problems(404))
def list_run_audit(
    run_id: RunId, query: Annotated[AuditQuery, Query()], services: ServicesDep
) -> AuditPage:
    """Show actions on a run with actor and reason, oldest first."""
    return services.queries.audit(run_id, query.after, query.limit)


@router.get("/audit", summary="Show the whole audit log", responses=problems())
def list_audit(query: Annotated[AuditQuery, Query()], services: ServicesDep) -> AuditPage:
    """Show actions on all runs and on the collector, oldest first."""
    return services.queries.audit(None, query.after, query.limit)
