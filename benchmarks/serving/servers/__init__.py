"""The servers that are compared, one file each; all but `bare` run in environments of their own."""
