mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_resource "aws_vpc" {
    defaults = { id = "vpc-0123456789abcdef0" }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:skouter-peer-key-AbCdEf" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/skouter" }
  }
}

override_resource {
  target = aws_subnet.public
  values = { id = "subnet-0123456789abcdef0" }
}

override_resource {
  target = aws_route_table.private
  values = { id = "rtb-0123456789abcdef0" }
}

variables {
  agent = { url = "https://example.com/skouter.tar.gz", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }
}

run "it_applies" {
  command = plan
  assert {
    condition     = length(module.skouter.autoscaling_groups) == 2
    error_message = "There is not one gateway for each zone."
  }
}
