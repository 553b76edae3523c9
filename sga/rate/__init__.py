"""What gradients say about the smoothing rate before anything is trained.

gram measures inner products of gradients on a sample of groups, estimates turns them into each rule's rate with an
interval, advice into words, page into a web page.
"""
