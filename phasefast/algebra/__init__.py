"""Normal equations, their solutions and certificates, and the choice of penalties."""
