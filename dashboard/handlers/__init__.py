"""What pages do when something happens: plain functions that callbacks hand over to."""
