"""Who may say what on the bus: accounts, credentials, certificates, and the folder that they are kept in."""
